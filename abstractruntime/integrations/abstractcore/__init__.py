"""The bridge to AbstractCore: models, tools and approvals. It imports AbstractCore only where it is used."""

from .approvals import ApprovalToolExecutor, ToolApprovalPolicy

__all__ = ["ApprovalToolExecutor", "ToolApprovalPolicy"]

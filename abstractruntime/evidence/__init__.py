"""Evidence: what tools that look at the world outside brought back, kept as artifacts and found from the run."""

from .reading import evidence_spans, load_evidence
from .recorder import EvidenceCaptureStats, EvidenceRecorder

__all__ = ["EvidenceCaptureStats", "EvidenceRecorder", "evidence_spans", "load_evidence"]

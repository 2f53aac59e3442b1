"""Artifacts: contents too large for a run, kept beside it and named by refs."""

from .base import ArtifactStore
from .file_store import AsyncFileArtifactStore, FileArtifactStore
from .in_memory import AsyncInMemoryArtifactStore, InMemoryArtifactStore
from .models import Artifact, ArtifactAccessStats, ArtifactDescriptor, ArtifactMetadata
from .refs import artifact_ref, compute_artifact_id, get_artifact_id, is_artifact_ref, resolve_artifact

__all__ = [
    "Artifact",
    "ArtifactAccessStats",
    "ArtifactDescriptor",
    "ArtifactMetadata",
    "ArtifactStore",
    "AsyncFileArtifactStore",
    "AsyncInMemoryArtifactStore",
    "FileArtifactStore",
    "InMemoryArtifactStore",
    "artifact_ref",
    "compute_artifact_id",
    "get_artifact_id",
    "is_artifact_ref",
    "resolve_artifact",
]

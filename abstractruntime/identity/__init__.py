"""Identity of actors."""

from .fingerprint import ActorFingerprint

__all__ = ["ActorFingerprint"]

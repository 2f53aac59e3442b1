"""Where the files of an artifact store lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..drafts import make_folder

Durability = Literal["full", "none"]

BLOB, META = ".bin", ".meta"


class Place:
    """The folders of one store, and whether what is written there is flushed to the disk."""

    def __init__(self, base_dir: str | Path, durability: Durability) -> None:
        if durability not in ("full", "none"):
            raise ValueError(f'durability must be "full" or "none", found {durability!r}.')
        self.durable = durability == "full"
        root = Path(base_dir).expanduser().absolute() / "artifacts"
        self.blobs, self.refs, self.locks = root / "blobs", root / "refs", root / "locks"
        self.catalog = root / "artifact_catalog.sqlite3"
        self._made = False

    def blob(self, blob_id: str) -> Path:
        """The file of a content."""
        return self.blobs / f"{blob_id}{BLOB}"

    def meta(self, artifact_id: str) -> Path:
        """The file of an artifact's metadata."""
        return self.refs / f"{artifact_id}{META}"

    def make(self) -> None:
        """Make the folders, once."""
        if not self._made:
            for folder in (self.blobs, self.refs, self.locks):
                make_folder(folder, durable=self.durable)
            self._made = True

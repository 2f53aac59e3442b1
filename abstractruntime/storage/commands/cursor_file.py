"""A consumer's cursor in a JSON file."""

from __future__ import annotations

from pathlib import Path

from ...core.clock import utc_now_iso
from ...core.codec import REFUSALS, decode, encode
from ...core.errors import StoreCorrupt
from ..drafts import make_folder, os_errors, write_file
from .aio import ThreadedCursorStore
from .model import CommandCursorStore, checked_cursor


class JsonFileCommandCursorStore(CommandCursorStore):
    """A cursor in the file `path`, replaced as a whole and flushed; `.aio` is the same store for async callers.

    Without the file reading begins at 0. One that is damaged is StoreCorrupt and not 0: to begin again would do every
    command twice.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser().absolute()

    @property
    def aio(self) -> AsyncJsonFileCommandCursorStore:
        """This store for async callers."""
        return AsyncJsonFileCommandCursorStore._around(self)

    def load(self) -> int:
        """See `CommandCursorStore.load`. Raises StoreCorrupt."""
        with os_errors(self._path):
            try:
                data = self._path.read_bytes()
            except FileNotFoundError:
                return 0
        try:
            found = decode(data)
            return checked_cursor(found.get("cursor") if isinstance(found, dict) else found)
        except REFUSALS as error:
            raise StoreCorrupt(
                f"{self._path}: this holds no cursor ({error}). Restore it, or save the number of the last command "
                "that was done."
            ) from error

    def save(self, cursor: int) -> None:
        """See `CommandCursorStore.save`."""
        data = encode({"cursor": checked_cursor(cursor), "updated_at": utc_now_iso()})
        make_folder(self._path.parent, durable=True)
        write_file(self._path, data, durable=True)


class AsyncJsonFileCommandCursorStore(ThreadedCursorStore):
    """`JsonFileCommandCursorStore` for async callers; `.sync` is the store itself, used in worker threads."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(JsonFileCommandCursorStore(path))

"""A process that may not write: `python -m tests.read_only_worker FOLDER FACADE`.

It takes the permission from itself, sees every way in refused, gives it back and goes on with the same objects.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from abstractruntime import StoreReadOnly
from abstractruntime.core import portal

from .desks import Desk

#: who no file belongs to
NOBODY = 65_534


def become_nobody(folder: Path) -> None:
    """No permission stops root."""
    os.chown(folder, NOBODY, NOBODY)
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def refused_and_allowed_again(folder: Path, facade: str, what: str) -> None:
    """What may not be written to: the database's file, its folder, the one above, or that of the owners' locks."""
    path = folder / "deep" / "runs.db"
    place = {"file": path, "folder": path.parent, "no-folder": folder, "lock": path.parent}[what]
    if what != "no-folder":
        desk = Desk(path, facade)
        desk.start()
        if what != "lock":  # a file that is open stays so
            desk.close()
    place.chmod(0o400 if place == path else 0o500)
    if what == "lock":
        with pytest.raises(StoreReadOnly, match=r"runs\.db-owners"):
            desk.renew()
    else:
        desk = Desk(path, facade)
        desk.is_refused(StoreReadOnly)
    place.chmod(0o700)
    desk.start()
    desk.renew()
    desk.ends()
    if what == "lock":  # whose file then stays, and is in nobody's way
        owners = path.with_name("runs.db-owners")
        owners.chmod(0o500)
        portal.call(desk.database.backend.release, "owner")
        owners.chmod(0o700)
        assert not portal.call(desk.database.backend.alive, "owner", 0)
    desk.close()


if __name__ == "__main__":
    given = Path(sys.argv[1])
    if os.geteuid() == 0:
        become_nobody(given)
    for what in ("file", "folder", "no-folder", "lock"):
        (given / what).mkdir()
        refused_and_allowed_again(given / what, sys.argv[2], what)
        print(what)

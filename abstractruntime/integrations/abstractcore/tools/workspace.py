"""Keeps file tools inside a run's workspace.

`vars.workspace_root` names the folder. `vars.workspace_access_mode` is `workspace_only` (the default),
`workspace_or_allowed` (also `vars.workspace_allowed_paths`) or `all_except_ignored` (everything); what is under
`vars.workspace_ignored_paths` is refused in every mode. Relative paths, also the allowed and ignored ones, start at
the root.

A path is resolved with all its links when the call is about to begin, checked, and given to the tool resolved; so `..`,
`~`, absolute paths and links lead nowhere else, and a link made by an earlier call of the batch is seen. A tool that
walks a folder is refused where the folder holds a link that leads out. Not guaranteed: that nobody replaces a folder
by a link between this check and the tool's own access, which takes somebody else at work in the same folder; hard
links; tools of other names; MCP servers, which have their own borders; and what a command does that
`execute_command` runs, of which only the working directory is kept inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import Struct

from ....core.threads import WorkerThreads
from .arguments import normal, unwrapped
from .coercion import ArgumentError


class _Rule(Struct, frozen=True):
    """Which arguments of a tool are paths. `start` is where it works when it is not told; patterns stay below that."""

    start: str | None = None
    patterns: tuple[str, ...] = ()
    walks: bool = False


_RULES = {
    "list_files": _Rule(start="directory_path", patterns=("pattern",), walks=True),
    "search_files": _Rule(start="path", patterns=("filepattern",), walks=True),
    "skim_folders": _Rule(patterns=("filepattern",), walks=True),
    "skim_files": _Rule(),
    "analyze_code": _Rule(),
    "analyze_media": _Rule(),
    "read_file": _Rule(),
    "write_file": _Rule(),
    "edit_file": _Rule(),
    "execute_command": _Rule(start="working_directory"),
}
#: every name, without case and separators, under which a file tool may be given paths
_PATHS = frozenset(
    {
        "path", "paths", "filepath", "filepaths", "filename", "filenames", "file", "files", "directorypath",
        "directory", "directories", "dir", "folder", "folders", "folderpath", "folderpaths", "workingdirectory",
        "workingdir", "workdir", "cwd", "root", "rootpath", "target", "targetpath", "source", "destination",
        "targetfile", "sourcefile", "sourcepath", "inputfile", "inputpath", "outputfile", "outputpath", "relativepath",
        "absolutepath", "fullpath", "location", "filelocation",
    }
)  # fmt: skip
_SEVERAL = frozenset({"paths", "filepaths", "filenames", "files", "directories", "folders", "folderpaths"})
#: folders that AbstractCore's walking tools pass over, and that are full of links in most projects
_PASSED_OVER = frozenset({".git", ".hg", ".svn", ".venv", "venv", "env", "node_modules", "__pycache__"})
#: the vars of the run whose workspace counts here
_VARS: ContextVar[Mapping[str, Any] | None] = ContextVar("abstractruntime_workspace", default=None)
_THREADS = WorkerThreads(8)
_MOST_LINKS = 40
_MODES = ("workspace_only", "workspace_or_allowed", "all_except_ignored")


class Refused(ValueError):
    """A call that the workspace does not allow; the text says why."""


class Workspace(Struct, frozen=True):
    """The borders of one run. All paths are absolute and resolved."""

    root: str
    mode: str = "workspace_only"
    allowed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def inside(self, path: str) -> str:
        """The path, resolved with all its links; `Refused` when it leads out. Reads the disk."""
        real = _real(path.strip(), self.root)
        if not self.admits(real):
            raise Refused(f"{path!r} is outside of the workspace {self.root!r}")
        if real != real.strip():  # tools strip what they are given, and would get another
            raise Refused(f"{path!r}: a name that begins or ends with a blank cannot be given to a tool")
        return real

    def admits(self, real: str) -> bool:
        """Whether a resolved path lies inside the borders."""
        if any(_is_under(real, folder) for folder in self.ignored):
            return False
        if self.mode == "all_except_ignored":
            return True
        return _is_under(real, self.root) or (
            self.mode == "workspace_or_allowed" and any(_is_under(real, folder) for folder in self.allowed)
        )


def workspace_of(vars: Mapping[str, Any]) -> Workspace | None:
    """The workspace of a run; None when it has none. Raises `Refused` when what is there cannot be read."""
    given = vars.get("workspace_root")
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if not isinstance(given, str) or not os.path.isabs(os.path.expanduser(given.strip())):
        raise Refused(f"vars.workspace_root must be an absolute path, found {given!r:.80}")
    mode = vars.get("workspace_access_mode") or "workspace_only"
    if mode not in _MODES:
        raise Refused(f"vars.workspace_access_mode must be one of {', '.join(_MODES)}, found {mode!r:.80}")
    root = _real(given.strip(), "/")
    listed = {
        name: tuple(_real(path, root) for path in _several(vars.get(f"workspace_{name}_paths") or [], name))
        for name in ("allowed", "ignored")
    }
    return Workspace(root, mode, listed["allowed"], listed["ignored"])


def confined(call: Mapping[str, Any], vars: Mapping[str, Any]) -> dict[str, Any] | str:
    """The call with its paths resolved and inside the run's workspace, or the text of the error that refuses it.

    Calls of other tools, and all calls of a run without `vars.workspace_root`, come back as they are. It reads the disk
    and may block. Nothing given is changed.

    >>> confined({"name": "read_file", "arguments": {"file_path": "/etc/passwd"}}, {"workspace_root": "/tmp/w"})
    "Workspace: '/etc/passwd' is outside of the workspace '/tmp/w'"
    """
    name = str(call.get("name") or "").strip()
    rule = _RULES.get(name)
    if rule is None:
        return dict(call)
    try:
        workspace = workspace_of(vars)
        if workspace is None:
            return dict(call)
        return {**call, "arguments": _arguments(rule, unwrapped(call.get("arguments")), workspace)}
    except (Refused, ArgumentError) as error:
        return f"Workspace: {error}"


async def aconfined(call: Mapping[str, Any], vars: Mapping[str, Any]) -> dict[str, Any] | str:
    """`confined` without blocking the event loop: the disk is read in a thread, and only for file tools."""
    if str(call.get("name") or "").strip() not in _RULES or not vars.get("workspace_root"):
        return dict(call)
    found: dict[str, Any] | str = await _THREADS.run(confined, call, vars)
    return found


@contextmanager
def in_workspace(vars: Mapping[str, Any]) -> Iterator[None]:
    """Let every executor of ours that is asked inside the block check each call again, just before it begins.

    That sees links which an earlier call of the batch has made. It holds through executors around executors.
    """
    token = _VARS.set(vars)
    try:
        yield
    finally:
        _VARS.reset(token)


async def confined_here(name: str, arguments: Any) -> Any | Refused:
    """The arguments as `in_workspace` around this code wants them, or why it refuses them."""
    vars = _VARS.get()
    if vars is None:
        return arguments
    found = await aconfined({"name": name, "arguments": arguments}, vars)
    return Refused(found) if isinstance(found, str) else found["arguments"]


def _arguments(rule: _Rule, arguments: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    places: list[str] = []
    for name, value in arguments.items():
        plain = normal(name)
        if plain not in _PATHS:
            found[name] = value
        elif plain in _SEVERAL:
            found[name] = [workspace.inside(path) for path in _several(value, name)]
            places += found[name]
        elif value is not None:
            found[name] = workspace.inside(_one(value, name))
            places.append(found[name])
    if rule.start is not None and not places:
        found[rule.start] = workspace.inside(".")
        places = [found[rule.start]]
    for name, value in found.items():
        if normal(name) in rule.patterns:
            for folder in _folders_of(value, name):
                for place in places:
                    workspace.inside(os.path.join(place, folder))
    if rule.walks:
        for place in places:
            _check_links(place, workspace)
    return found


def _one(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{name} must be a path, found {value!r:.80}")
    if "\0" in value:
        raise Refused(f"{name} holds a null character")
    return value


def _several(value: Any, name: str) -> list[str]:
    """Paths from a list, from JSON text, or from text with one per line or between `|`, as the tools read it."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise Refused(f"{name} must be a list of paths, found {text!r:.80}") from error
        else:
            value = [part for line in text.splitlines() for part in line.split("|") if part.strip()]
    if not isinstance(value, list | tuple):
        raise Refused(f"{name} must be a list of paths, found {value!r:.80}")
    return [_one(path, name).strip() for path in value]


def _real(path: str, start: str) -> str:
    """The path with all links resolved; of a link that leads to itself nothing can be opened, and it stays."""
    try:
        whole = os.path.join(start, os.path.expanduser(path))
        os.fsencode(whole)
        for _ in range(_MOST_LINKS):  # behind a link to itself, realpath leaves the rest of a path unresolved
            real = os.path.realpath(whole)
            if real == whole:
                return real
            whole = real
    except (OSError, ValueError) as error:
        raise Refused(f"{path!r:.80} is no path: {error}") from error
    raise Refused(f"{path!r:.80} leads through too many links")


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _folders_of(value: Any, name: str) -> Iterator[str]:
    """The folders that a pattern names. It stays below where the search begins: no `..`, nothing absolute, no wildcard
    but `**` in the name of a folder."""
    for pattern in str(value).split("|"):
        parts = pattern.strip().replace("\\", "/").split("/")
        if ".." in parts or pattern.strip().startswith(("/", "~", "\\")) or "\0" in pattern:
            raise Refused(f"{name} {pattern!r} leads out of the folder that is searched")
        if any(part != "**" and any(char in part for char in "*?[{") for part in parts[:-1]):
            raise Refused(f"{name} {pattern!r}: only ** may stand before the last part of a pattern")
        first = parts.index("**") if "**" in parts else len(parts) - 1
        if first > 0:
            yield "/".join(parts[:first])


def _check_links(folder: str, workspace: Workspace) -> None:
    for link in _links_below(folder):
        if not workspace.admits(_real(link, workspace.root)):
            raise Refused(
                f"{folder!r} holds the link {link!r}, which leads out of the workspace; "
                "search a folder beside it, or allow where it leads"
            )


def _links_below(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _PASSED_OVER]
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path):
                yield path

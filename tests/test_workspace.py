"""File tools stay inside a run's workspace, whatever a path is made of."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from abstractruntime.integrations.abstractcore.tool_executor import CompositeToolExecutor, MappingToolExecutor
from abstractruntime.integrations.abstractcore.tools import aconfined, confined, in_workspace

from .scale import scaled


@pytest.fixture
def place(tmp_path):
    """A workspace beside a folder with a secret, and links of every kind between them."""
    root, outside = tmp_path / "work", tmp_path / "outside"
    for folder in (root / "sub" / "deep", outside / "more", tmp_path / "workshop"):
        folder.mkdir(parents=True)
    for file in (root / "a.txt", root / "sub" / "b.txt"):
        file.write_text("mine")
    for file in (outside / "secret", outside / "more" / "secret", tmp_path / "workshop" / "secret"):
        file.write_text("secret")
    (root / "inner").symlink_to("sub")
    return tmp_path


def with_links(place: Path) -> Path:
    root, outside = place / "work", place / "outside"
    (root / "out").symlink_to(outside)
    (root / "sub" / "up").symlink_to("../../outside/more")
    (root / "secret").symlink_to(outside / "secret")
    (root / "sub" / "chain").symlink_to("../out")
    (root / "dangling").symlink_to(outside / "new")
    (root / "loop").symlink_to("loop")
    return root


def vars_of(place: Path, **more: Any) -> dict[str, Any]:
    return {"workspace_root": str(place / "work"), **{f"workspace_{name}": value for name, value in more.items()}}


def check(name: str, arguments: Any, vars: dict[str, Any]) -> Any:
    """The arguments after the check, or the error's text."""
    found = confined({"name": name, "arguments": arguments, "call_id": "c"}, vars)
    return found if isinstance(found, str) else found["arguments"]


def test_paths_inside_are_given_resolved_and_the_call_keeps_what_else_it_has(place):
    root = str(place / "work")
    call = {"name": "read_file", "arguments": {"file_path": "sub/../a.txt", "start_line": 2}, "call_id": "c"}
    assert confined(call, vars_of(place)) == {**call, "arguments": {"file_path": f"{root}/a.txt", "start_line": 2}}
    assert call["arguments"] == {"file_path": "sub/../a.txt", "start_line": 2}
    assert check("read_file", {"path": "inner/b.txt"}, vars_of(place)) == {"path": f"{root}/sub/b.txt"}
    assert check("write_file", {"file_path": "new/c.txt", "content": "/etc"}, vars_of(place)) == {
        "file_path": f"{root}/new/c.txt",
        "content": "/etc",
    }


def test_tools_that_are_not_told_where_work_at_the_root(place):
    root = str(place / "work")
    assert check("list_files", {}, vars_of(place)) == {"directory_path": root}
    assert check("search_files", {"pattern": "../x"}, vars_of(place)) == {"pattern": "../x", "path": root}
    assert check("execute_command", {"command": "ls /"}, vars_of(place)) == {
        "command": "ls /",
        "working_directory": root,
    }
    assert check("execute_command", {"command": "ls", "cwd": "sub"}, vars_of(place))["cwd"] == f"{root}/sub"
    assert check("list_files", None, vars_of(place)) == {"directory_path": root}


ESCAPES = [
    "../outside/secret",
    "sub/../../outside/secret",
    "/etc/passwd",
    "~/x",
    "~root/x",
    "out/secret",
    "secret",
    "sub/up/secret",
    "sub/chain/secret",
    "inner/chain/secret",
    "loop/../secret",
    "loop/../out/secret",
    "loop/../loop/../sub/up/secret",
    "dangling",
    "dangling/deeper",
    "../workshop/secret",
    "  ../outside/secret ",
    "a\0b",
    "\ud800",
    ".." + "/.." * 50,
    "//etc/passwd",
    "./.././outside",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_under_any_spelling_of_the_name(place, path):
    with_links(place)
    for name in ("file_path", "filePath", "FILE-NAME", "path", "file", "Path"):
        for tool in ("read_file", "write_file", "edit_file", "analyze_code"):
            assert check(tool, {name: path}, vars_of(place)).startswith("Workspace: ")
        assert check("read_file", {"arguments": {name: path}}, vars_of(place)).startswith("Workspace: ")
        text = json.dumps({"arguments": {name: path}})
        assert check("read_file", text, vars_of(place)).startswith("Workspace: ")
    assert check("skim_files", {"paths": ["a.txt", path]}, vars_of(place)).startswith("Workspace: ")
    assert check("execute_command", {"command": "ls", "working_directory": path}, vars_of(place)).startswith("Work")


@pytest.mark.parametrize(
    "paths", ["a.txt|../outside/secret", "a.txt\n/etc/passwd", '["a.txt", "/etc/passwd"]', "[", 7, [1]]
)
def test_lists_of_paths_written_as_text_are_checked_one_by_one(place, paths):
    assert check("skim_files", {"paths": paths}, vars_of(place)).startswith("Workspace: ")


def test_lists_come_out_as_lists_so_that_no_tool_splits_them_otherwise(place):
    root = str(place / "work")
    assert check("skim_files", {"paths": "a.txt|sub/b.txt"}, vars_of(place)) == {
        "paths": [f"{root}/a.txt", f"{root}/sub/b.txt"]
    }
    assert check("skim_files", {"files": "a,b"}, vars_of(place)) == {"files": [f"{root}/a,b"]}
    assert check("skim_folders", {"paths": ["sub"]}, vars_of(place)) == {"paths": [f"{root}/sub"]}


@pytest.mark.parametrize(
    "pattern", ["../*", "sub/../../*", "/etc/*", "~/*", "*.py|../*", "s*/*", "..\\*", "**/..", "o?t/x"]
)
def test_patterns_stay_below_where_the_search_begins(place, pattern):
    assert check("list_files", {"pattern": pattern}, vars_of(place)).startswith("Workspace: ")
    assert check("search_files", {"pattern": "x", "file_pattern": pattern}, vars_of(place)).startswith("Workspace: ")
    assert "file_pattern" in check("search_files", {"pattern": "x", "file_pattern": "**/*.py|*.md"}, vars_of(place))


def test_a_pattern_leads_through_no_link_and_a_walk_meets_none_behind_a_loop(place):
    root = with_links(place)
    (root / ".venv").mkdir()
    (root / ".venv" / "out").symlink_to(place / "outside")
    assert check("list_files", {"pattern": ".venv/out/*"}, vars_of(place)).startswith("Workspace: ")
    (root / "sub" / "deep" / "l").symlink_to("../../loop/../secret")
    assert "deep/l" in check("list_files", {"directory_path": "sub/deep"}, vars_of(place))


def test_a_walk_is_refused_where_a_link_leads_out(place):
    assert check("search_files", {"pattern": "x"}, vars_of(place))["path"]
    (place / "work" / "sub" / "deep" / "out").symlink_to(place / "outside")
    refused = check("search_files", {"pattern": "x"}, vars_of(place))
    assert "sub/deep/out" in refused
    assert check("list_files", {"directory_path": "sub"}, vars_of(place)).startswith("Workspace: ")
    allowed = vars_of(place, access_mode="workspace_or_allowed", allowed_paths=["../outside"])
    assert check("search_files", {"pattern": "x"}, allowed)["path"]
    assert check("read_file", {"file_path": "a.txt"}, vars_of(place))  # nobody walks


def test_modes(place):
    outside, root = str(place / "outside" / "secret"), str(place / "work")
    also = vars_of(place, access_mode="workspace_or_allowed", allowed_paths=f"../outside\n{place}/nowhere")
    assert check("read_file", {"file_path": "../outside/secret"}, also) == {"file_path": outside}
    assert check("read_file", {"file_path": "../workshop/secret"}, also).startswith("Workspace: ")
    free = vars_of(place, access_mode="all_except_ignored", ignored_paths=["../outside/more", "sub"])
    assert check("read_file", {"file_path": "../outside/secret"}, free) == {"file_path": outside}
    assert check("read_file", {"file_path": "../outside/more/secret"}, free).startswith("Workspace: ")
    assert check("read_file", {"file_path": "inner/b.txt"}, free).startswith("Workspace: ")
    assert check("read_file", {"file_path": "/etc/passwd"}, free) == {"file_path": os.path.realpath("/etc/passwd")}
    ignored = vars_of(place, ignored_paths=["sub"])
    assert check("read_file", {"file_path": "sub/b.txt"}, ignored).startswith("Workspace: ")
    assert check("read_file", {"file_path": "a.txt"}, ignored) == {"file_path": f"{root}/a.txt"}


@pytest.mark.parametrize(
    "vars",
    [
        {"workspace_root": "relative"},
        {"workspace_root": 7},
        {"workspace_root": ["/tmp"]},  # noqa: S108
        {"workspace_root": "/w\0"},
        {"workspace_root": "/w", "workspace_access_mode": "everything"},
        {"workspace_root": "/w", "workspace_allowed_paths": 7},
        {"workspace_root": "/w", "workspace_ignored_paths": [None]},
    ],
)
def test_a_workspace_that_cannot_be_read_allows_nothing(vars):
    assert check("read_file", {"file_path": "a"}, vars).startswith("Workspace: ")


def test_other_tools_and_runs_without_a_workspace_are_left_alone(place):
    call = {"name": "my_tool", "arguments": {"path": "/etc"}}
    assert confined(call, vars_of(place)) == call
    for vars in ({}, {"workspace_root": None}, {"workspace_root": "  "}):
        assert check("read_file", {"file_path": "/etc/passwd"}, vars) == {"file_path": "/etc/passwd"}


def test_no_random_path_through_a_real_folder_full_of_links_leads_out(place, seed):
    """What is let through opens inside the workspace or not at all, and is what the plain path would have opened."""
    dice = random.Random(seed)
    root = with_links(place)
    names = [
        "..",
        ".",
        "sub",
        "deep",
        "out",
        "up",
        "inner",
        "secret",
        "chain",
        "a.txt",
        "b.txt",
        "loop",
        "",
        "work",
        "new",
    ]
    folders = [root, root / "sub", root / "sub" / "deep"]
    for n in range(25):
        target = "/".join(dice.choice(names) for _ in range(dice.randint(1, 4))) or "."
        (dice.choice(folders) / f"l{n}").symlink_to(target if dice.random() < 0.8 else str(place / "outside"))
    names += [f"l{n}" for n in range(25)]
    admitted = 0
    for _ in range(scaled(3000, 100_000)):
        some = dice.sample(names, 6)  # few, so that they meet in every order
        path = "/".join(dice.choice([*some, "..", "secret"]) for _ in range(dice.randint(1, 6)))
        found = check("read_file", {dice.choice(["file_path", "path", "File"]): path}, vars_of(place))
        if isinstance(found, str):
            continue
        (given,) = found.values()
        admitted += 1
        assert os.path.realpath(given) == given
        try:
            text = Path(given).read_text()
        except OSError:
            continue
        assert text == "mine"
        assert not os.path.exists(root / path) or os.path.samefile(given, root / path)
    assert admitted > 50


async def test_a_link_made_by_an_earlier_call_of_the_batch_is_seen(place):
    def execute_command(command: str, working_directory: str = ".") -> int:
        return subprocess.run(command, shell=True, cwd=working_directory, check=True).returncode  # noqa: S602

    def read_file(file_path: str) -> str:
        return Path(file_path).read_text()

    tools = CompositeToolExecutor([MappingToolExecutor.from_tools([execute_command, read_file])])
    calls = [
        {"name": "read_file", "arguments": {"path": "a.txt"}},
        {"name": "execute_command", "arguments": {"command": "ln -s ../outside later"}},
        {"name": "read_file", "arguments": {"file_path": "later/secret"}},
    ]
    vars = vars_of(place)
    early = [await aconfined(call, vars) for call in calls]
    assert not [call for call in early if isinstance(call, str)]  # none of it is there yet
    with in_workspace(vars):
        results = (await tools.aexecute(tool_calls=calls))["results"]
    assert [result["success"] for result in results] == [True, True, False]
    assert results[0]["output"] == "mine"
    assert results[2]["error"].startswith("Workspace: 'later/secret' is outside")
    assert (place / "work" / "later").is_symlink()

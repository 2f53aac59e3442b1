"""The version is one and the same everywhere, and the changelog speaks of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import abstractruntime

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_the_package_tells_the_version_it_is_distributed_under():
    assert abstractruntime.__version__ == VERSION


def test_the_changelog_has_a_section_for_what_is_to_come_or_for_this_version():
    headings = [line.split() for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()]
    sections = {words[1].strip("[]") for words in headings if words[:1] == ["##"]}
    assert sections & {"Unreleased", VERSION}

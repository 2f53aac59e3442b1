"""The suites can fail: every broken store is caught, by the test that is about what it does wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import broken_claims, broken_ledgers, broken_pairs, broken_runs, broken_shelves  # noqa: F401 - they fill it
from .breaking import BROKEN

ROOT = Path(__file__).parent.parent

MODULE = """
from tests.test_conformance_catches import BROKEN

globals().update({broken.suite.__name__: broken.suite for broken in BROKEN.values()})
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of all broken stores, where nothing of ours is configured and no plugin but its own is there."""
    folder = tmp_path_factory.mktemp("users_project")
    (folder / "test_stores.py").write_text(MODULE)
    wanted = [
        f"test_stores.py::{broken.suite.__name__}" + (f"::{broken.caught_by}" if broken.caught_by else "")
        for broken in BROKEN.values()
    ]
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-rA", "--tb=line", "--rootdir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, *wanted], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    return done.stdout


def told(report: str, outcome: str, name: str) -> set[str]:
    """The tests of one broken store that ended so."""
    own = BROKEN[name].suite.__name__
    return set(re.findall(rf"^{outcome} \S+::{own}::(\w+)", report, re.MULTILINE))


@pytest.mark.parametrize("name", [name for name, broken in BROKEN.items() if broken.caught_by])
def test_a_broken_store_is_caught_by_the_test_about_it(name, report):
    assert not told(report, "ERROR", name)
    assert BROKEN[name].caught_by in told(report, "FAILED", name)


@pytest.mark.parametrize("name", [name for name, broken in BROKEN.items() if not broken.caught_by])
def test_a_whole_store_passes(name, report):
    assert told(report, "PASSED", name)
    assert not told(report, "FAILED", name) | told(report, "ERROR", name)


def test_each_test_of_each_suite_catches_something():
    """A test that no broken store fails may be one that cannot fail."""
    suites = {broken.suite.__mro__[1] for broken in BROKEN.values()}
    tests = {(suite, name) for suite in suites for name in dir(suite) if name.startswith("test_")}
    caught = {(broken.suite.__mro__[1], broken.caught_by) for broken in BROKEN.values()}
    assert {f"{suite.__name__}.{name}" for suite, name in tests - caught} == set()


def test_without_pytest_the_suites_say_what_to_install():
    program = "import sys; sys.modules['pytest'] = None; import abstractruntime.testing.conformance"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'pip install "abstractruntime[testing]"' in done.stderr

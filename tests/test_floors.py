"""The floors of the package: imports point down, time comes from one place, and no extra is imported unasked."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "abstractruntime"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"  # hands names on, from every floor
}

# Lowest first. A name stands for a module or a whole folder; the longest one that fits a module is its place.
FLOORS = (
    ("core.kinds", "core.errors", "core.clock", "core.questions", "core.shielding", "core.threads"),
    ("core.step_plan", "core.ids"),
    ("core.models",),
    (
        "core.codec",
        "core.typed",
        "core.vars",
        "core.event_keys",
        "core.portal",
        "core.traces",
        "core.graph",
        "identity",
    ),
    ("core.streams",),
    (
        "core.secrets",
        "core.spec",
        "core.policy",
        "core.outcomes",
        "core.config",
        "core.backend",
        "core.chain",
        "core.layers",
        "core.changes",
        "core.tokens",
        "core.classify",
    ),
    ("storage.base", "scheduler.registry", "core.capacity"),
    ("core.kernel", "core.leases", "memory", "rendering"),
    ("core.journal",),
    ("effects", "storage"),
    ("attempts", "effects.memory", "evidence", "landings", "node_errors", "others", "plans", "starting"),
    ("claims", "children"),
    ("parallel",),
    ("performer", "following", "given", "reading", "nests", "cascade"),
    ("delivering",),
    ("engine", "moving"),
    ("approving", "managing", "deleting", "emitting", "history", "holding", "limiting", "subruns"),
    ("runtime",),
    ("sync",),
    ("scheduler",),
    ("testing",),
    ("integrations",),
)
FLOOR_OF = {place: floor for floor, places in enumerate(FLOORS) for place in places}
SHIMS = {"core.runtime"}  # documented addresses that only hand names on
TIME = {
    *(f"time.{name}" for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")),
    *(f"datetime.{name}" for name in ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")),
    *(f"{library}.{name}" for library in ("asyncio", "anyio") for name in ("sleep", "sleep_until", "current_time")),
}
# What the base install brings: its four dependencies and theirs (sniffio with an older anyio).
BASE = {"abstractruntime", "aiofiles", "aiosqlite", "anyio", "msgspec", "idna", "sniffio", "typing_extensions"}


def place_of(module: str) -> tuple[str, int]:
    """The place of a module and its floor; what has no place stands above all floors."""
    place = module
    while place and place not in FLOOR_OF:
        place = place.rpartition(".")[0]
    return place or module, FLOOR_OF.get(place, len(FLOORS))


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports: `from ..core.models import RunState as S` is one name."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["abstractruntime", *module.split(".")][: -node.level] if node.level else []
            source = ".".join(above + ([node.module] if node.module else []))
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and module of what a module imports from the package itself; an `__init__` goes by its folder's name."""
    for line, name in imports(module):
        package, _, target = name.partition(".")
        if package == "abstractruntime":
            while target and target not in MODULES and not (PACKAGE / target.replace(".", "/")).is_dir():
                target = target.rpartition(".")[0]
            yield line, target or package


@pytest.mark.parametrize("module", sorted(MODULES.keys() - SHIMS))
def test_a_module_imports_only_lower_floors_or_its_own_place(module):
    place, floor = place_of(module)
    assert floor < len(FLOORS), f"{module} stands on no floor: give it a place in FLOORS"
    upward = [
        f"line {line}: {module} (floor {floor}) imports {target} (floor {place_of(target)[1]})"
        for line, target in own_imports(module)
        if place_of(target)[0] != place and place_of(target)[1] >= floor
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_imported_inside_a_function(module):
    functions = (node for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inside = (node for function in functions for node in ast.walk(function))
    assert not [f"line {node.lineno}" for node in inside if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"core.clock"}))
def test_only_the_clock_reads_the_time_or_sleeps(module):
    known: dict[str, str] = {}
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    uses = []
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Name | ast.Attribute):
            root, dot, rest = ast.unparse(node).partition(".")
            if known.get(root, root) + dot + rest in TIME:
                uses.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not uses, f"{uses}: take a Clock instead"


#: handlers of every exception after which the same is done again, another way, so that it is raised there
AGAIN = {"storage.sqlite.batch": 1}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_error_of_any_kind_is_swallowed(module):
    """A handler of every exception raises one, hands it on, or logs it."""
    silent = []
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type):
            names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if not (raises or "log" in names or node.name in names):
                silent.append(f"line {node.lineno}")
    assert len(silent) == AGAIN.get(module, 0), silent


def _is_broad(kind: ast.expr | None) -> bool:
    return kind is None or any(
        isinstance(node, ast.Name) and node.id in ("Exception", "BaseException") for node in ast.walk(kind)
    )


def test_importing_the_package_imports_nothing_but_its_base_dependencies():
    program = "import sys; before = set(sys.modules); import abstractruntime; print(*set(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in found.stdout.split()}
    assert roots - sys.stdlib_module_names - BASE == set()

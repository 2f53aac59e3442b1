"""What the suites have in common: a store per test, one way to call it, and the check of what is declared."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ...core.errors import AbstractRuntimeError, RevisionConflict
from .capabilities import Capability

#: how a store may refuse a value; any other error says that it was not prepared for it
REFUSALS = (AbstractRuntimeError, ValueError, TypeError, OverflowError)

#: what `at_once` does: see there
Work = Generator[tuple[Any, ...], Any, None]


class Suite:
    """The base of the suites. A subclass of yours defines `make`, and `close` where the store must be closed."""

    #: the optional parts that the store has
    capabilities: ClassVar[Collection[Capability]] = frozenset()
    #: those that the suite knows of
    known: ClassVar[Collection[Capability]] = frozenset()

    #: of this test alone
    folder: Path
    store: Any

    def make(self, folder: Path) -> Any:
        """Make the store. May be `async def`.

        It is called once per test with a fresh folder, and again with the same one to see whether the store is
        persistent. A store without files makes an empty one each time.
        """
        raise NotImplementedError(f"{type(self).__name__}.make(folder) must return the store that is tested.")

    def close(self, store: Any) -> Any:
        """Close what `make` returned. May be `async def`."""

    @pytest.fixture(autouse=True)
    def _store_of_this_test(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self._opened: list[Any] = []
        with asyncio.Runner() as self._runner:
            try:
                self.store = self.opened()
                yield
            finally:
                self.let_go()

    def opened(self) -> Any:
        """Another store made on the folder of this test; closed when the test ends."""
        store = self.do(self.make, self.folder)
        self._opened.append(store)
        return store

    def reopened(self) -> Any:
        """The store after a restart: everything is closed and made again on the same folder."""
        self.let_go()
        gc.collect()  # stores without a close() let go of their files when nobody holds them
        self.store = self.opened()
        return self.store

    def let_go(self) -> None:
        """Close every store that is open, and hold none any longer."""
        self.store = None
        while self._opened:
            self.do(self.close, self._opened.pop())

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function, be it sync or async, and wait for what it gives."""
        result = function(*args, **options)
        return self._runner.run(_awaited(result)) if inspect.isawaitable(result) else result

    def at_once(self, method: Callable[..., Any], *works: Work) -> None:
        """Do all of these at once: each in a thread of its own, or for async methods like this one as tasks of a loop.

        A work is a generator that yields what to call, `(function, *args)`, and is sent the result, or the
        RevisionConflict that the call raised; any other error is raised here.
        """
        if inspect.iscoroutinefunction(method):
            self._runner.run(_gathered(works))
            return
        with ThreadPoolExecutor(len(works)) as threads:
            for done in [threads.submit(_done, work) for work in works]:
                done.result()

    def has(self, capability: Capability) -> bool:
        """Whether the store is declared to have it."""
        return capability in self.capabilities

    def needs(self, capability: Capability) -> None:
        """Skip the test unless the store is declared to have what it is about."""
        if not self.has(capability):
            pytest.skip(f"{capability.name} is not declared")

    def agrees(self, capability: Capability, there: bool) -> None:
        """Fail unless what was found is what was declared."""
        declared = self.has(capability)
        name = f"Capability.{capability.name}"
        assert there or not declared, f"{name} is declared, but the store does not have it"
        assert declared or not there, f"the store has {name}, which must be declared, so that it is tested"

    def refuses(self, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
        """Whether the call was refused with an error that callers can tell from a defect."""
        try:
            self.do(function, *args, **options)
        except REFUSALS:
            return True
        return False

    def conflicts(self, function: Callable[..., Any], *args: Any) -> RevisionConflict:
        """The conflict that the call must be."""
        with pytest.raises(RevisionConflict) as caught:
            self.do(function, *args)
        return caught.value

    def test_what_is_declared_is_what_the_store_has(self) -> None:
        """Methods that are there are declared and the other way round; nothing is declared that is not of this kind."""
        foreign = [capability.name for capability in self.capabilities if capability not in self.known]
        assert not foreign, f"{foreign} say nothing of a store of this kind; it may have {_names(self.known)}"
        for capability in (part for part in self.known if part.methods):
            found = [name for name in capability.methods if callable(getattr(self.store, name, None))]
            assert found in ([], [*capability.methods]), f"{capability.name} needs {capability.methods}, found {found}"
            self.agrees(capability, bool(found))


async def _awaited(result: Any) -> Any:
    return await result


def _done(work: Work) -> None:
    result = None
    while True:
        try:
            function, *args = work.send(result)
        except StopIteration:
            return
        try:
            result = function(*args)
        except RevisionConflict as error:
            result = error


async def _gathered(works: Sequence[Work]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for work in works:
            tasks.create_task(_done_here(work))


async def _done_here(work: Work) -> None:
    result = None
    while True:
        try:
            function, *args = work.send(result)
        except StopIteration:
            return
        try:
            result = await function(*args)
        except RevisionConflict as error:
            result = error


def _names(capabilities: Collection[Capability]) -> list[str]:
    return sorted(capability.name for capability in capabilities)

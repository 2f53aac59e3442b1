"""A tamper-evident ledger: see `core.chain` for what the chain is, what it shows and what it cannot."""

from __future__ import annotations

from ..core.chain import record_hash, verify_ledger_chain
from ..core.models import StepRecord
from .base import LedgerStore
from .decorating import AsyncLedgerDecorator, LedgerDecorator

__all__ = ["AsyncHashChainedLedgerStore", "HashChainedLedgerStore", "record_hash", "verify_ledger_chain"]


class HashChainedLedgerStore(LedgerDecorator, LedgerStore):
    """Chains the records of each run, around any ledger store and in any order with other decorators.

    Every record gets `prev_hash`, the hash of the record before it, and `record_hash`, its own. A runtime keeps hash
    and number of the last one in the run's checkpoint, in the same commit; so it needs stores that commit together,
    and refuses others. A ledger whose chain has begun is chained on by every runtime and `append`, decorated or not;
    one that has records already is chained from there on, and verifies as `missing_record_hash`.

    >>> ledger = HashChainedLedgerStore(InMemoryLedgerStore())  # doctest: +SKIP
    >>> verify_ledger_chain(ledger.list(run_id))["ok"]  # doctest: +SKIP
    True
    """

    @property
    def aio(self) -> AsyncHashChainedLedgerStore:
        """The same for async callers."""
        return AsyncHashChainedLedgerStore(self.inner)

    def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return super()._append(record, chain=True)


class AsyncHashChainedLedgerStore(AsyncLedgerDecorator, LedgerStore):
    """`HashChainedLedgerStore` for async callers, around a sync or an async store."""

    async def _append(self, record: StepRecord, *, chain: bool = False) -> StepRecord:
        return await super()._append(record, chain=True)

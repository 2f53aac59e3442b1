"""Runs and ledgers in one SQLite file, or in as many as you like."""

from .database import SqliteDatabase
from .stores import AsyncSqliteLedgerStore, AsyncSqliteRunStore, SqliteLedgerStore, SqliteRunStore

__all__ = [
    "AsyncSqliteLedgerStore",
    "AsyncSqliteRunStore",
    "SqliteDatabase",
    "SqliteLedgerStore",
    "SqliteRunStore",
]

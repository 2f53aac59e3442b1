"""Runs and ledgers in a folder of JSON files that people can read."""

from .stores import AsyncJsonFileRunStore, AsyncJsonlLedgerStore, JsonFileRunStore, JsonlLedgerStore

__all__ = ["AsyncJsonFileRunStore", "AsyncJsonlLedgerStore", "JsonFileRunStore", "JsonlLedgerStore"]

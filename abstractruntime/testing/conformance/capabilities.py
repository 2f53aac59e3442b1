"""What a store may have beyond what it must have."""

from __future__ import annotations

from enum import Enum


class Capability(Enum):
    """An optional part of a store. One without methods is a way to behave."""

    #: the run store can be searched: `storage.base.QueryableRunStore`
    QUERY = ("query", "list_runs", "list_due_wait_until", "list_children")
    #: it lists narrow rows of runs
    INDEX = ("index", "list_run_index")
    #: it finds runs and waits, page by page
    FIND = ("find", "find_runs", "find_waits")
    #: it can forget a run; of a ledger store: a ledger
    DELETE = ("delete", "delete")
    #: it inserts a run unless the id is taken
    CREATE_IF_ABSENT = ("create_if_absent", "create_if_absent")
    #: `save` keeps the fields of the engine, raises the revision, and refuses what was computed from an older one
    REVISIONS = ("revisions",)
    #: the ledger store reads on from a record
    LIST_AFTER = ("list_after", "list_after")
    #: it counts records without listing them
    COUNT = ("count", "count")
    #: those of several runs at once
    COUNT_MANY = ("count_many", "count_many")
    #: it sums up what the records of several runs tell of calls and tokens
    METRICS = ("metrics", "metrics_many")
    #: it chains records by their hashes
    CHAIN = ("chain",)
    #: run store and ledger store commit together, in one atomic write
    JOINT = ("joint",)
    #: the artifact store can change what is known of an artifact
    UPDATE = ("update",)
    #: it counts who looks at artifacts
    ACCESS = ("access",)
    #: it collects contents that no artifact has any more
    COLLECT = ("collect",)
    #: what is stored is there when the store is made again on the same folder
    PERSISTENT = ("persistent",)

    def __init__(self, label: str, *methods: str) -> None:
        #: in lower case
        self.label = label
        #: the methods that a store with it has
        self.methods = methods

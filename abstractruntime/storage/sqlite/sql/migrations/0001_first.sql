-- The first schema. Rows of hot tables are joined by integer keys; text ids live once, in runs and streams.
-- Instants that are compared are microseconds since 1970; what is only sorted stays the text that the state holds.

-- Who a run is: written when it is created. A ledger that was appended without a run has a row without workflow_id.
-- AUTOINCREMENT, so that an id is never given twice: processes remember which run has which.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    workflow_id TEXT,
    session_id TEXT,
    actor_id TEXT,
    parent_run_id TEXT,
    created_at TEXT
);
CREATE INDEX runs_by_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_by_session ON runs (session_id) WHERE session_id IS NOT NULL;

-- Where a run stands: the hot row. A step writes revision, records and data, and no index has one of those.
-- rest_at is updated_at while the run does not run, else NULL. data stays last: the columns before it are read alone.
CREATE TABLE states (
    id INTEGER PRIMARY KEY REFERENCES runs (id),
    revision INTEGER NOT NULL,
    records INTEGER NOT NULL,
    requested INTEGER NOT NULL DEFAULT 0,
    status TEXT,
    rest_at TEXT,
    owner TEXT,
    data BLOB NOT NULL
);
CREATE INDEX states_at_rest ON states (status, rest_at) WHERE rest_at IS NOT NULL;
CREATE INDEX states_running ON states (id) WHERE rest_at IS NULL;
CREATE INDEX states_by_owner ON states (owner) WHERE owner IS NOT NULL;

-- A step is written as an upsert (see advance_states), which must never insert: no state has no status.
CREATE TRIGGER states_known AFTER INSERT ON states WHEN NEW.status IS NULL
BEGIN
    SELECT RAISE(ABORT, 'a step of a run that is not stored');
END;

-- One row per commit: seq is the number of its first record, counted from 1; data a JSON array of count records.
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    lookup_key TEXT,
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX ledger_by_run ON ledger (run, seq);
CREATE INDEX ledger_by_key ON ledger (run, lookup_key) WHERE lookup_key IS NOT NULL;

-- What waits: a row exactly while its run is WAITING. due is NULL without a deadline and while the run is paused.
CREATE TABLE waits (
    run INTEGER NOT NULL REFERENCES runs (id),
    branch INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL,
    wait_key TEXT,
    stream TEXT,
    name TEXT,
    due INTEGER,
    PRIMARY KEY (run, branch)
) WITHOUT ROWID;
CREATE INDEX waits_by_due ON waits (due) WHERE due IS NOT NULL;
CREATE INDEX waits_by_name ON waits (stream, name) WHERE stream IS NOT NULL;
CREATE INDEX waits_by_key ON waits (wait_key);

-- What runs send each other: messages in the order of their stream. head is the position of the last one.
CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    head INTEGER NOT NULL DEFAULT 0,
    UNIQUE (scope, scope_id)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    stream INTEGER NOT NULL REFERENCES streams (id),
    position INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    name TEXT NOT NULL,
    at INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (stream, position),
    UNIQUE (stream, message_id)
);

-- Until when an owner is known to live.
CREATE TABLE leases (
    owner TEXT PRIMARY KEY,
    until INTEGER NOT NULL
) WITHOUT ROWID;

-- What others ask of a run. states.requested counts them, so that a step's guard needs no second look.
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    data BLOB NOT NULL
);
CREATE INDEX requests_by_run ON requests (run);

-- Hash-chained ledgers keep the hash of their last record beside the number of records; NULL for a ledger without one.
ALTER TABLE states ADD COLUMN head TEXT;

-- The hot write, see 0002_steps.sql, with the head; '' stands for none.
DROP TRIGGER steps_land;
DROP VIEW steps;
CREATE VIEW steps AS
SELECT id AS run, revision, records AS base, 0 AS count, '' AS lookup_key, '' AS head, data AS state, data AS records
FROM states;
CREATE TRIGGER steps_land INSTEAD OF INSERT ON steps WHEN NEW.run <> 0
BEGIN
    UPDATE states
    SET revision = NEW.revision, records = NEW.base + NEW.count, data = NEW.state, head = nullif(NEW.head, '')
    WHERE id = NEW.run AND revision = NEW.revision - 1 AND records = NEW.base AND requested = 0;
    SELECT RAISE(ABORT, 'a step of a run that is not where it was') WHERE changes() <> 1;
    INSERT INTO ledger (run, seq, count, lookup_key, data)
    SELECT NEW.run, NEW.base + 1, NEW.count, nullif(NEW.lookup_key, ''), NEW.records WHERE NEW.count > 0;
END;

-- Bookmarks of runs. about holds what a list shows, as JSON; data the state, which may be large.
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY,
    snapshot_id TEXT NOT NULL UNIQUE,
    run_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    about BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX snapshots_by_run ON snapshots (run_id);
CREATE INDEX snapshots_by_age ON snapshots (created_at);

-- Commands of hosts, in the order in which they came, and how far each consumer has read them.
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    command_id TEXT NOT NULL UNIQUE,
    run_id TEXT NOT NULL,
    type TEXT NOT NULL,
    ts TEXT NOT NULL,
    client_id TEXT,
    payload BLOB NOT NULL
);
CREATE INDEX commands_by_run ON commands (run_id);
CREATE TABLE command_cursors (
    consumer_id TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    updated_at TEXT NOT NULL
) WITHOUT ROWID;

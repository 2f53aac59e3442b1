-- Every statement of the package, but for the schema. Each has a name and the reason why it reads as it does.
-- Statements with VALUES are repeated to many rows at once where many are written: see statements.py.

-- name: id_of_run
-- The integer that stands for a run in every other table.
SELECT id FROM runs WHERE run_id = ?;

-- name: last_run_id
-- Ids are handed out by the writer, so that one statement can insert many runs and the next their states.
SELECT seq FROM sqlite_sequence WHERE name = 'runs';

-- name: insert_runs
-- A run id that exists, be it of a run or of a ledger without one, breaks the uniqueness and sends the batch to the
-- careful way.
INSERT INTO runs (id, run_id, workflow_id, session_id, actor_id, parent_run_id, created_at, root)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: set_identity
-- A host may save a run with other origins than it had; and a ledger may have been there before its run.
UPDATE runs SET workflow_id = ?, session_id = ?, actor_id = ?, parent_run_id = ?, created_at = ?, root = ?
WHERE id = ?;

-- name: insert_states
INSERT INTO states (id, revision, records, status, rest_at, owner, data, head, tokens, due)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: land_steps
-- The hot write of a step: only columns that no index has. Many rows in one statement, see migrations/0002_steps.sql.
INSERT INTO steps (run, revision, base, count, lookup_key, head, tokens, state, records)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: advance_state
-- The same for the state of one row, where a conflict is to be told apart.
UPDATE states SET revision = ?, records = ?, data = ?, head = ?, tokens = ?
WHERE id = ? AND revision = ? AND records = ? AND requested = ?;

-- name: land_records
-- Effects of a step with several land one by one: they add records, and the state stays as it is. Requests are no bar:
-- what was performed is journaled before they are answered.
UPDATE states SET records = ?, head = ? WHERE id = ? AND revision = ? AND records = ?;

-- name: replace_state
-- The full write: status, rest and owner may change, and whatever was requested is answered.
UPDATE states SET revision = ?, records = ?, requested = 0, status = ?, rest_at = ?, owner = ?, data = ?, head = ?,
tokens = ?, due = ?
WHERE id = ? AND revision = ? AND records = ? AND requested = ?;

-- name: guards_of_state
-- What a conflict found instead of what it expected.
SELECT revision, records, requested FROM states WHERE id = ?;

-- name: insert_ledger
INSERT INTO ledger (run, seq, count, lookup_key, data)
VALUES (?, ?, ?, ?, ?);

-- name: delete_waits
DELETE FROM waits WHERE run = ?;

-- name: insert_waits
INSERT INTO waits (run, branch, reason, wait_key, due, stream, name, since)
VALUES (?, 0, ?, ?, ?, ?, ?, ?);

-- name: delete_requests
DELETE FROM requests WHERE run = ?;

-- name: requestable_run
-- Only a run that is stored and has not ended can be asked for something.
SELECT s.id FROM runs r JOIN states s ON s.id = r.id
WHERE r.run_id = ? AND s.status IN ('running', 'waiting');

-- name: requests_of_run
SELECT data FROM requests WHERE run = ? ORDER BY id;

-- name: insert_request
INSERT INTO requests (run, data) VALUES (?, ?);

-- name: count_request
-- The next step of the run fails its guard until it has answered.
UPDATE states SET requested = requested + 1 WHERE id = ?;

-- name: count_appended_record
-- A record that a host appends is counted like one of a step, so that a step in progress sees that it came between.
UPDATE states SET records = records + 1, head = ? WHERE id = ?;

-- name: end_of_ledger
-- Where an appended record goes: behind so many, the last of which has this hash if they are chained.
SELECT records, head FROM states WHERE id = ?;

-- name: last_of_ledger
-- The number of the last record: what count() is, and where a ledger without a run goes on.
SELECT coalesce(max(seq + count - 1), 0) FROM (SELECT seq, count FROM ledger WHERE run = ? ORDER BY seq DESC LIMIT 1);

-- name: delete_state
DELETE FROM states WHERE id = ?;

-- name: forget_identity
-- The ledger of a deleted run stays readable under its id.
UPDATE runs SET workflow_id = NULL, session_id = NULL, actor_id = NULL, parent_run_id = NULL, created_at = NULL,
root = NULL
WHERE id = ?;

-- name: delete_unused_run
DELETE FROM runs WHERE id = ?
AND NOT EXISTS (SELECT 1 FROM states WHERE id = runs.id) AND NOT EXISTS (SELECT 1 FROM ledger WHERE run = runs.id);

-- name: delete_ledger
DELETE FROM ledger WHERE run = ?;

-- name: restart_records
-- The numbers of a deleted ledger begin anew, and so does its chain.
UPDATE states SET records = 0, head = NULL WHERE id = ?;

-- name: load_state
SELECT s.id, s.revision, s.records, s.head, r.root, s.requested, s.data FROM runs r JOIN states s ON s.id = r.id WHERE r.run_id = ?;

-- name: states_of_runs
-- Many at once; the ids come as one JSON array, so that the statement is always the same.
SELECT r.run_id, s.id, s.requested, s.data
FROM json_each(?) j CROSS JOIN runs r ON r.run_id = j.value JOIN states s ON s.id = r.id;

-- name: records_after
-- Rows from the one that holds record :after + 1. A row has at least one record, so :limit rows suffice.
SELECT l.seq, l.data FROM ledger l
WHERE l.run = :run AND l.seq >= (SELECT coalesce(max(f.seq), 0) FROM ledger f WHERE f.run = :run AND f.seq <= :after + 1)
ORDER BY l.seq LIMIT :limit;

-- name: records_newest_first
-- Whoever asks whether a commit landed asks about one of the last.
SELECT data FROM ledger WHERE run = ? ORDER BY seq DESC;

-- name: records_before
-- Where the effect of a slim record stands is rarely more than a few rows away.
SELECT data FROM ledger WHERE run = ? AND seq <= ? ORDER BY seq DESC;

-- name: records_by_key
-- +seq, or the planner walks the whole ledger in order to save itself the sorting of a few rows.
SELECT data FROM ledger WHERE run = ? AND lookup_key = ? ORDER BY +seq;

-- name: runs_at_rest
-- One status at a time, because then the index gives the order and the limit ends the search.
SELECT r.run_id, s.records, s.data
FROM states s CROSS JOIN runs r ON r.id = s.id LEFT JOIN waits w ON w.run = s.id AND w.branch = 0
WHERE s.status = :status AND s.rest_at IS NOT NULL
AND (:workflow_id IS NULL OR r.workflow_id = :workflow_id)
AND (:wait_reason IS NULL OR w.reason = :wait_reason)
AND (:root_only = 0 OR coalesce(r.parent_run_id, '') = '')
ORDER BY s.rest_at DESC, r.run_id LIMIT :limit;

-- name: runs_running
-- When a running run was last updated stands in its data alone, so all of them are read and the caller sorts.
SELECT r.run_id, s.records, s.data
FROM states s JOIN runs r ON r.id = s.id
WHERE s.rest_at IS NULL
AND (:workflow_id IS NULL OR r.workflow_id = :workflow_id)
AND (:root_only = 0 OR coalesce(r.parent_run_id, '') = '');

-- name: runs_of_session
-- A session has few runs: all of them, and the caller sorts and filters.
SELECT r.run_id, s.records, s.data FROM runs r JOIN states s ON s.id = r.id WHERE r.session_id = ?;

-- name: runs_due
SELECT r.run_id, s.records, s.data
FROM waits w JOIN states s ON s.id = w.run JOIN runs r ON r.id = w.run
WHERE w.due IS NOT NULL AND w.due <= ? ORDER BY w.due, r.run_id LIMIT ?;

-- name: children_of_run
SELECT r.run_id, s.records, s.data
FROM runs r JOIN states s ON s.id = r.id
WHERE r.parent_run_id = :parent AND (:status IS NULL OR s.status = :status) ORDER BY r.created_at, r.id;

-- name: renew_lease
INSERT INTO leases (owner, until) VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET until = excluded.until;

-- name: lease_of_owner
SELECT until FROM leases WHERE owner = ?;

-- name: delete_lease
DELETE FROM leases WHERE owner = ?;

-- name: find_runs
-- Here and below, a term with a parameter is left out where its filter is not given: see finding.py. What leads has a
-- plain column, which an index serves in the order of the page; '+' keeps the other columns from leading.
SELECT r.id, r.run_id, s.data FROM runs r CROSS JOIN states s ON s.id = r.id
WHERE r.id < :before
AND r.parent_run_id = :by_parent_run_id
AND r.session_id = :by_session_id
AND r.actor_id = :by_actor_id
AND r.workflow_id = :by_workflow_id
AND +r.parent_run_id = :parent_run_id
AND +r.session_id = :session_id
AND +r.actor_id = :actor_id
AND +r.workflow_id = :workflow_id
AND (coalesce(r.parent_run_id, '') = '') = :root_only
AND s.status IN (SELECT value FROM json_each(:statuses))
AND (SELECT w.reason FROM waits w WHERE w.run = r.id) = :wait_reason
ORDER BY r.id DESC LIMIT :limit;

-- name: find_runs_of_status
-- One status at a time, so that each comes in the order of the page.
SELECT s.id, r.run_id, s.data FROM states s CROSS JOIN runs r ON r.id = s.id
WHERE s.id < :before
AND s.status = :by_status
AND +r.parent_run_id = :parent_run_id
AND +r.session_id = :session_id
AND +r.actor_id = :actor_id
AND +r.workflow_id = :workflow_id
AND (coalesce(r.parent_run_id, '') = '') = :root_only
AND (SELECT w.reason FROM waits w WHERE w.run = r.id) = :wait_reason
ORDER BY s.id DESC LIMIT :limit;

-- name: find_waits
SELECT w.run, r.run_id, s.data FROM waits w CROSS JOIN runs r ON r.id = w.run CROSS JOIN states s ON s.id = w.run
WHERE w.run < :before
AND w.reason = :by_reason
AND w.wait_key = :by_wait_key
AND w.stream = 'asks' AND w.name = :by_asks
AND +w.reason = :reason
AND +w.wait_key = :wait_key
AND +w.stream = 'asks' AND +w.name = :asks
AND +w.due <= :due
AND +r.parent_run_id = :parent_run_id
AND +r.session_id = :session_id
AND +r.actor_id = :actor_id
AND +r.workflow_id = :workflow_id
AND (coalesce(r.parent_run_id, '') = '') = :root_only
ORDER BY w.run DESC LIMIT :limit;

-- name: find_waits_of_runs
SELECT r.id, r.run_id, s.data FROM runs r CROSS JOIN waits w ON w.run = r.id CROSS JOIN states s ON s.id = r.id
WHERE r.id < :before
AND r.run_id = :by_run_id
AND r.parent_run_id = :by_parent_run_id
AND r.session_id = :by_session_id
AND r.actor_id = :by_actor_id
AND r.workflow_id = :by_workflow_id
AND +r.parent_run_id = :parent_run_id
AND +r.session_id = :session_id
AND +r.actor_id = :actor_id
AND +r.workflow_id = :workflow_id
AND +w.reason = :reason
AND +w.wait_key = :wait_key
AND +w.stream = 'asks' AND +w.name = :asks
AND +w.due <= :due
ORDER BY r.id DESC LIMIT :limit;

-- name: find_waits_due
SELECT w.run, r.run_id, s.data FROM waits w CROSS JOIN runs r ON r.id = w.run CROSS JOIN states s ON s.id = w.run
WHERE w.due <= :by_due AND (w.due, w.run) > (:after_due, :after_run)
AND +w.reason = :reason
AND +w.wait_key = :wait_key
AND +w.stream = 'asks' AND +w.name = :asks
AND +r.parent_run_id = :parent_run_id
AND +r.session_id = :session_id
AND +r.actor_id = :actor_id
AND +r.workflow_id = :workflow_id
ORDER BY w.due, w.run LIMIT :limit;

-- name: some_runs
-- How many an index would have to go through, at most so many: the one with the fewest leads.
SELECT count(*) FROM (SELECT 1 FROM runs r WHERE 1
AND r.run_id = :by_run_id
AND r.parent_run_id = :by_parent_run_id
AND r.session_id = :by_session_id
AND r.actor_id = :by_actor_id
AND r.workflow_id = :by_workflow_id
LIMIT :most);

-- name: some_states
SELECT count(*) FROM (SELECT 1 FROM states s WHERE 1
AND s.status = :by_status
LIMIT :most);

-- name: some_waits
SELECT count(*) FROM (SELECT 1 FROM waits w WHERE 1
AND w.reason = :by_reason
AND w.wait_key = :by_wait_key
AND w.stream = 'asks' AND w.name = :by_asks
AND w.due <= :by_due
LIMIT :most);

-- name: delete_leases
-- In a copy nobody performs anything.
DELETE FROM leases;

-- name: runs_that_miscount
-- A run's state counts the records of its ledger; a run of which that is not true was not written by one commit.
SELECT r.run_id FROM states s JOIN runs r ON r.id = s.id
WHERE s.records <> coalesce((SELECT l.seq + l.count - 1 FROM ledger l WHERE l.run = s.id ORDER BY l.seq DESC LIMIT 1), 0)
LIMIT ?;

-- name: save_snapshot
-- Over the one of this id, so that a save whose outcome is unclear may be done again.
INSERT INTO snapshots (snapshot_id, run_id, created_at, about, data) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (snapshot_id) DO UPDATE SET run_id = excluded.run_id, created_at = excluded.created_at,
about = excluded.about, data = excluded.data;

-- name: load_snapshot
SELECT about, data FROM snapshots WHERE snapshot_id = ?;

-- name: delete_snapshot
DELETE FROM snapshots WHERE snapshot_id = ?;

-- name: snapshots_by_age
-- Without their states, which may be large. The reader stops when it has enough.
SELECT snapshot_id, about FROM snapshots ORDER BY created_at DESC, snapshot_id;

-- name: snapshots_of_run
SELECT snapshot_id, about FROM snapshots WHERE run_id = ? ORDER BY created_at DESC, snapshot_id;

-- name: all_states
-- With every column that says again what the data says: a check compares them.
SELECT s.id, r.run_id, s.head, s.data, s.revision, s.status, s.rest_at, s.owner, s.tokens,
r.workflow_id, r.session_id, r.actor_id, r.parent_run_id, r.created_at, r.root
FROM states s LEFT JOIN runs r ON r.id = s.id;

-- name: wait_of_run
SELECT run, reason, wait_key, due, stream, name FROM waits WHERE run = ?;

-- name: all_records
SELECT r.run_id, l.count, l.data FROM ledger l LEFT JOIN runs r ON r.id = l.run;

-- name: seq_of_command
SELECT seq FROM commands WHERE command_id = ?;

-- name: insert_command
INSERT INTO commands (command_id, run_id, type, ts, client_id, payload) VALUES (?, ?, ?, ?, ?, ?);

-- name: commands_after
SELECT seq, payload, command_id, run_id, type, ts, client_id FROM commands WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: last_command
-- The highest number that was ever given, be the command still there or not.
SELECT seq FROM sqlite_sequence WHERE name = 'commands';

-- name: delete_commands_of_run
DELETE FROM commands WHERE run_id = ?;

-- name: cursor_of_consumer
SELECT cursor FROM command_cursors WHERE consumer_id = ?;

-- name: save_cursor
INSERT INTO command_cursors (consumer_id, cursor, updated_at) VALUES (?, ?, ?)
ON CONFLICT (consumer_id) DO UPDATE SET cursor = excluded.cursor, updated_at = excluded.updated_at;

-- name: tokens_of_tree
-- The run at the top has no root itself.
SELECT coalesce(sum(s.tokens), 0) FROM runs r CROSS JOIN states s ON s.id = r.id WHERE r.root = ? OR r.run_id = ?;

-- What runs send each other: see core/streams.py for what it means.

-- name: id_of_stream
SELECT id, head FROM streams WHERE scope = ? AND scope_id = ?;

-- name: insert_stream
INSERT INTO streams (scope, scope_id) VALUES (?, ?) ON CONFLICT (scope, scope_id) DO NOTHING;

-- name: insert_message
-- One whose id is there already is the same message.
INSERT INTO messages (stream, position, message_id, name, at, data)
VALUES (:stream, :position, :message_id, :name, :at, :data)
ON CONFLICT (stream, message_id) DO NOTHING;

-- name: raise_head
UPDATE streams SET head = ? WHERE id = ?;

-- name: nudge_waits
UPDATE waits SET nudged = :at WHERE stream = :key AND name IN (:name, '*') AND nudged IS NULL;

-- name: nudge_wait
UPDATE waits SET nudged = ? WHERE run = ?;

-- name: first_message
SELECT min(position) FROM messages WHERE stream = ?;

-- name: first_message_since
SELECT min(position) FROM messages WHERE stream = ? AND at >= ?;

-- name: delete_messages
DELETE FROM messages WHERE stream = ? AND position < ?;

-- name: nudged_states
SELECT w.run, r.run_id, s.data FROM waits w JOIN runs r ON r.id = w.run JOIN states s ON s.id = w.run
WHERE w.stream = ? AND w.nudged IS NOT NULL;

-- name: message_of_name
SELECT position, message_id, name, at, data FROM messages
WHERE stream = ? AND name = ? AND position >= ? ORDER BY position LIMIT 1;

-- name: messages_from
-- Read until one comes that was not read.
SELECT position, message_id, name, at, data FROM messages WHERE stream = ? AND position >= ? ORDER BY position;

-- name: message_by_id
SELECT 1 FROM messages WHERE stream = ? AND message_id = ?;

-- name: listeners
SELECT r.run_id, s.data FROM waits w JOIN runs r ON r.id = w.run JOIN states s ON s.id = w.run
WHERE w.stream = ? AND w.name IN (?, '*') AND w.nudged IS NULL ORDER BY r.run_id LIMIT ?;

-- name: names_listened_for
SELECT DISTINCT name FROM waits WHERE stream = ? ORDER BY name LIMIT ?;

-- name: nudged_runs
SELECT r.run_id FROM waits w JOIN runs r ON r.id = w.run
WHERE w.nudged IS NOT NULL ORDER BY w.nudged, r.run_id LIMIT ?;

-- name: nudged_runs_of_stream
SELECT r.run_id FROM waits w JOIN runs r ON r.id = w.run
WHERE w.stream = ? AND w.nudged IS NOT NULL ORDER BY w.nudged, r.run_id LIMIT ?;

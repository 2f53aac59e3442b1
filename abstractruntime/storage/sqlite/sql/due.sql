-- What can move now, one statement per reason; each is led by an index that holds nothing else. Lists are JSON arrays:
-- :alive of the owners that live and whoever asks, :others of them without that one, :passing of runs that are not asked
-- for, :watched of runs that are asked for only if their owner has died, :resting of both.

-- name: due_running
-- A step does not say who holds its run: its last owner, while that one lives, may be at it or not.
SELECT r.run_id, r.workflow_id, s.revision,
s.due = '' AND (s.owner IS NULL OR s.owner IN (SELECT value FROM json_each(:others)))
FROM states s CROSS JOIN runs r ON r.id = s.id
WHERE s.due <= :now
AND r.run_id NOT IN (SELECT value FROM json_each(:passing))
AND (r.run_id NOT IN (SELECT value FROM json_each(:watched))
    OR s.owner NOT IN (SELECT value FROM json_each(:alive)))
ORDER BY s.due, s.id LIMIT :limit;

-- name: due_timers
SELECT r.run_id, r.workflow_id, s.revision, 0
FROM waits w CROSS JOIN states s ON s.id = w.run CROSS JOIN runs r ON r.id = w.run
WHERE w.due <= :micros
AND r.run_id NOT IN (SELECT value FROM json_each(:resting))
ORDER BY w.due, w.run LIMIT :limit;

-- name: due_messages
SELECT r.run_id, r.workflow_id, s.revision, 0
FROM waits w CROSS JOIN states s ON s.id = w.run CROSS JOIN runs r ON r.id = w.run
WHERE w.nudged IS NOT NULL
AND r.run_id NOT IN (SELECT value FROM json_each(:resting))
ORDER BY w.nudged, w.run LIMIT :limit;

-- name: due_parents
SELECT r.run_id, r.workflow_id, s.revision, 0
FROM waits w CROSS JOIN states s ON s.id = w.run CROSS JOIN runs r ON r.id = w.run
WHERE w.stirred IS NOT NULL
AND r.run_id NOT IN (SELECT value FROM json_each(:resting))
ORDER BY w.run LIMIT :limit;

-- name: due_requests
-- Whoever performs the effect of a run hears by itself what is asked of it.
SELECT r.run_id, r.workflow_id, s.revision, s.owner IN (SELECT value FROM json_each(:others))
FROM states s CROSS JOIN runs r ON r.id = s.id
WHERE s.requested > 0
AND r.run_id NOT IN (SELECT value FROM json_each(:resting))
ORDER BY s.id LIMIT :limit;

-- name: next_attempt
SELECT min(due) FROM states WHERE due > ?;

-- name: next_timer
SELECT min(due) FROM waits WHERE due > ?;

-- name: owners_alive
SELECT owner FROM leases WHERE until > ?;

-- name: stir_waits
-- Of a run that was just stored and waits for these runs, as a JSON array: one of them may have ended meanwhile.
UPDATE waits SET stirred = 1 WHERE run = ? AND EXISTS (
    SELECT 1 FROM json_each(?) j JOIN runs c ON c.run_id = j.value JOIN states s ON s.id = c.id
    WHERE s.status IN ('completed', 'failed', 'cancelled')
);

-- Waits for events: stream and name say what a wait listens to, nudged since when a message of that lies there, in
-- microseconds since 1970. due is of timers and deadlines alone. All three are NULL while the run is paused.
ALTER TABLE waits ADD COLUMN nudged INTEGER;
CREATE INDEX waits_nudged ON waits (stream, nudged) WHERE nudged IS NOT NULL;

-- The next message of a name, and where a stream begins for a run that is younger than it.
CREATE INDEX messages_by_name ON messages (stream, name, position);
CREATE INDEX messages_by_age ON messages (stream, at, position);

-- What waits already, by its key: evt:<scope>:<scope id>:<name>.
UPDATE waits SET
    stream = substr(wait_key, 5, instr(substr(wait_key, 5), ':')
        + instr(substr(substr(wait_key, 5), instr(substr(wait_key, 5), ':') + 1), ':') - 1),
    name = substr(wait_key, 5 + instr(substr(wait_key, 5), ':')
        + instr(substr(substr(wait_key, 5), instr(substr(wait_key, 5), ':') + 1), ':'))
WHERE reason = 'event'
    AND (wait_key GLOB 'evt:session:?*:?*' OR wait_key GLOB 'evt:workflow:?*:?*'
        OR wait_key GLOB 'evt:run:?*:?*' OR wait_key GLOB 'evt:global:?*:?*')
    AND NOT EXISTS (SELECT 1 FROM states s WHERE s.id = waits.run AND CASE WHEN json_valid(CAST(s.data AS TEXT))
        THEN json_extract(CAST(s.data AS TEXT), '$.vars._runtime.control.paused') IS 1 ELSE 0 END);

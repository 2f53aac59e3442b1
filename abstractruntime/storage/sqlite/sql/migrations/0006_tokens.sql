-- What the LLM calls of a run have used so far, and the run at the top of its tree, so that a tree is summed by an index.
-- Of runs that were stored before, root is found here, and their states do not have it; what they used is not counted.
ALTER TABLE states ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN root TEXT;
CREATE INDEX runs_by_root ON runs (root) WHERE root IS NOT NULL;

UPDATE runs SET root = (
    WITH RECURSIVE up (run_id, parent, height) AS (
        SELECT runs.run_id, runs.parent_run_id, 0
        UNION
        SELECT p.run_id, p.parent_run_id, up.height + 1 FROM up JOIN runs p ON p.run_id = up.parent WHERE up.height < 10000
    )
    SELECT coalesce(nullif(parent, ''), run_id) FROM up ORDER BY height DESC LIMIT 1
) WHERE parent_run_id <> '';

-- The hot write, see 0002_steps.sql and 0004_chain_snapshots_commands.sql, with the tokens.
DROP TRIGGER steps_land;
DROP VIEW steps;
CREATE VIEW steps AS
SELECT id AS run, revision, records AS base, 0 AS count, '' AS lookup_key, '' AS head, tokens, data AS state,
    data AS records
FROM states;
CREATE TRIGGER steps_land INSTEAD OF INSERT ON steps WHEN NEW.run <> 0
BEGIN
    UPDATE states
    SET revision = NEW.revision, records = NEW.base + NEW.count, data = NEW.state, head = nullif(NEW.head, ''),
        tokens = NEW.tokens
    WHERE id = NEW.run AND revision = NEW.revision - 1 AND records = NEW.base AND requested = 0;
    SELECT RAISE(ABORT, 'a step of a run that is not where it was') WHERE changes() <> 1;
    INSERT INTO ledger (run, seq, count, lookup_key, data)
    SELECT NEW.run, NEW.base + 1, NEW.count, nullif(NEW.lookup_key, ''), NEW.records WHERE NEW.count > 0;
END;

-- A step is one row written to a view. Its trigger checks the guard, writes the state and journals the records, so that
-- a batch of steps, however many, is one statement: outside a transaction of its own it begins, writes and flushes in
-- one stretch, without the interpreter's lock. A guard that fails takes the whole statement back.

CREATE VIEW steps AS
SELECT id AS run, revision, records AS base, 0 AS count, '' AS lookup_key, data AS state, data AS records FROM states;

-- base is the number of records that the step was computed from, count how many it adds, '' stands for no lookup key.
-- Rows of run 0 fill a statement up to a size that was prepared before.
CREATE TRIGGER steps_land INSTEAD OF INSERT ON steps WHEN NEW.run <> 0
BEGIN
    UPDATE states SET revision = NEW.revision, records = NEW.base + NEW.count, data = NEW.state
    WHERE id = NEW.run AND revision = NEW.revision - 1 AND records = NEW.base AND requested = 0;
    SELECT RAISE(ABORT, 'a step of a run that is not where it was') WHERE changes() <> 1;
    INSERT INTO ledger (run, seq, count, lookup_key, data)
    SELECT NEW.run, NEW.base + 1, NEW.count, nullif(NEW.lookup_key, ''), NEW.records WHERE NEW.count > 0;
END;

-- It guarded the upsert by which steps were written before.
DROP TRIGGER states_known;

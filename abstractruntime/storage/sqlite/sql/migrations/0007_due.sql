-- What a driver looks for. due is of runs that run: '' for one that may be moved at once, the instant of its next attempt
-- as text, else NULL. Only writes set it that begin or end such a pause, or a rest, so a step never touches its index. A
-- run that was between two attempts is looked at once, and then waits as it did.
ALTER TABLE states ADD COLUMN due TEXT;
UPDATE states SET due = '' WHERE rest_at IS NULL;
CREATE INDEX states_due ON states (due, id) WHERE due IS NOT NULL;
CREATE INDEX states_requested ON states (id) WHERE requested > 0;
CREATE INDEX waits_heard ON waits (nudged, run) WHERE nudged IS NOT NULL;

-- A run that waits for runs of its own is to look at them when one has ended, whoever ended it.
ALTER TABLE waits ADD COLUMN stirred INTEGER;
CREATE INDEX waits_stirred ON waits (run) WHERE stirred IS NOT NULL;
CREATE TRIGGER states_end AFTER UPDATE OF status ON states WHEN NEW.status IN ('completed', 'failed', 'cancelled')
BEGIN
    UPDATE waits SET stirred = 1 WHERE reason = 'subworkflow' AND run = (
        SELECT p.id FROM runs c JOIN runs p ON p.run_id = c.parent_run_id WHERE c.id = NEW.id
    );
END;
CREATE TRIGGER waits_begin AFTER INSERT ON waits WHEN NEW.reason = 'subworkflow'
BEGIN
    UPDATE waits SET stirred = 1 WHERE run = NEW.run AND branch = NEW.branch AND EXISTS (
        SELECT 1 FROM runs p JOIN runs c ON c.parent_run_id = p.run_id JOIN states s ON s.id = c.id
        WHERE p.id = NEW.run AND s.status IN ('completed', 'failed', 'cancelled')
    );
END;
UPDATE waits SET stirred = 1 WHERE reason = 'subworkflow';

-- Finding runs and waits: see storage/listing.py for what is asked, sqlite/finding.py for which index leads.
-- A run never changes where it comes from, so its indexes are written once. Each ends in the run's integer by itself,
-- which is the order of every page.

CREATE INDEX runs_by_workflow ON runs (workflow_id) WHERE workflow_id IS NOT NULL;
CREATE INDEX runs_by_actor ON runs (actor_id) WHERE actor_id IS NOT NULL;

-- A step of a running run does not touch status. states_at_rest has another order: the newest that came to rest.
CREATE INDEX states_by_status ON states (status);

CREATE INDEX waits_by_reason ON waits (reason);

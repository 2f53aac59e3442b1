-- A run that waits for runs of its own is to look at them only when one has ended of which it does not know that. Whoever
-- stores the wait knows which they are (due.sql: stir_waits); that any child of the run had ended once says nothing.
DROP TRIGGER waits_begin;

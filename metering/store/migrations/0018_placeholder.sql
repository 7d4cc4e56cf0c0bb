-- Kept for a change that is not made yet.

SELECT;

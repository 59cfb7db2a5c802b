\set n random(1, :rows)
SELECT 1 AS one \gset

\set n random(1, :rows)
SELECT text FROM bench.texts WHERE n = :n \gset

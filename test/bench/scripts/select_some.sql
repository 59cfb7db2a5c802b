\set n random(1, :warm_keys) * :step
SELECT text FROM bench.texts WHERE n = :n \gset

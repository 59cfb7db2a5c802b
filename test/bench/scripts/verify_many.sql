\set n random(1, :rows)
\if :started = 0
SELECT array_agg(key) AS keys FROM (SELECT secret AS key FROM bench.keys WHERE chain = 'warm' ORDER BY random() LIMIT 100) k \gset
\set started 1
\endif
SELECT array_agg(name) AS keys FROM apikey_verify_many(:keys, '/v1/chat', 'POST') WHERE valid HAVING count(*) = 100 \gset

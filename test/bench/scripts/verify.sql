\set n random(1, :rows)
\if :started = 0
SELECT key FROM bench.starts WHERE chain = :chain AND client = :client_id \gset
\set started 1
\endif
SELECT valid, code, name AS key FROM apikey_verify(:key, '/v1/chat', 'POST') WHERE valid \gset

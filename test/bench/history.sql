-- History of the last 80 days, straight into partitions such as the worker
-- makes. Variables:
--   keys   how many there are
--   rows   how many rows to make, evenly for all keys; besides, one busy key has
--          10,000 a day

SET client_min_messages = warning;
SET synchronous_commit = off;
SET maintenance_work_mem = '512MB';
SET TimeZone = 'UTC';

CREATE TABLE bench.ids AS
SELECT row_number() OVER (ORDER BY id) AS n, id FROM apikeys.keys;
CREATE UNIQUE INDEX ON bench.ids (n);
ANALYZE bench.ids;

SELECT format('CREATE TABLE apikeys.%s (LIKE apikeys.requests)', day.name),
       format('INSERT INTO apikeys.%s
               SELECT %L::timestamptz + random() * interval ''23:59:59'', i.id, ''/v1/chat'',
                      ''POST'', ''allowed'', ''VALID'', inet ''192.0.2.1'', 1
                 FROM bench.ids i
                WHERE i.n BETWEEN %s AND %s OR i.n BETWEEN 1 AND %s
                UNION ALL
               SELECT %L::timestamptz + random() * interval ''23:59:59'', i.id, ''/v1/chat'',
                      ''POST'', ''allowed'', ''VALID'', inet ''192.0.2.1'', 1
                 FROM bench.ids i, generate_series(1, 10000)
                WHERE i.n = 1',
              day.name, day.start, day.first, day.last, day.last - :keys, day.start),
       format('CREATE INDEX %s_key_id_idx ON apikeys.%1$s (key_id, "timestamp")', day.name),
       format('CREATE INDEX %s_denied_idx ON apikeys.%1$s ("timestamp") WHERE status = ''denied''',
              day.name),
       format('ALTER TABLE apikeys.requests ATTACH PARTITION apikeys.%s FOR VALUES FROM (%L) TO (%L)',
              day.name, day.start, day.start + interval '1 day')
  FROM (SELECT d.start, to_char(d.start, '"requests_"YYYY_MM_DD') AS name,
               d.first, d.first + :rows / 80 - 1 AS last
          FROM (SELECT current_date - n AS start,
                       (n - 1) * (:rows / 80) % :keys + 1 AS first
                  FROM generate_series(1, 80) n) d) day
\gexec
VACUUM (ANALYZE) apikeys.requests;
UPDATE bench.made SET at = clock_timestamp();
CREATE TABLE bench.ids_made AS
SELECT (SELECT count(*) FROM bench.ids) AS keys, :rows / 80 * 80 + 800000 AS rows;

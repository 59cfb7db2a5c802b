-- The keys of the benchmark, and a table of texts to look up. Variables:
--   rows   how many keys and texts
--   warm   how many of the keys are used warm, spread evenly over the table
--   all    whether the others are in chains too
--
-- Keys are in chains: the name of each is the secret of the next one. So the
-- answer to a verification brings the key of the next, chosen at random
-- beforehand, and the statement gets it as a bound parameter, while nobody
-- looks a secret up. Chain "warm" goes through the warm keys, "hot" is one key
-- whose name is its own secret. The other keys are ranked at random, and are in
-- chains "zipf N": one chain a rank up to 8, then a chain for each next half as
-- many again.

\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET synchronous_commit = off;
CREATE EXTENSION apikeys CASCADE;
\ir secrets.sql

CREATE UNLOGGED TABLE bench.keys AS
WITH families AS (
    SELECT s.n, s.secret, hashint8extended(s.n, 42) AS shuffled,
           CASE WHEN s.n % (:rows / :warm) = 0 THEN 'warm'
                WHEN s.n = 1 THEN 'hot' ELSE 'zipf' END AS family
      FROM bench.secrets s
     WHERE s.n BETWEEN 1 AND :rows
       AND (:'all' OR s.n % (:rows / :warm) = 0 OR s.n = 1)
), ranked AS (
    SELECT f.*, row_number() OVER (PARTITION BY f.family ORDER BY f.shuffled) AS rank
      FROM families f
), chained AS (
    SELECT r.*, CASE WHEN r.family <> 'zipf' THEN r.family
                     WHEN r.rank <= 8 THEN 'zipf ' || r.rank
                     ELSE 'zipf ' || 8 + ceil(ln(r.rank / 8.0) / ln(1.5)) END AS chain
      FROM ranked r
)
SELECT c.n, c.chain, c.rank, c.secret,
       coalesce(lead(c.secret) OVER following, first_value(c.secret) OVER following) AS next
  FROM chained c
WINDOW following AS (PARTITION BY c.chain ORDER BY c.rank);

-- Where each of 8 clients begins in each chain.
CREATE TABLE bench.starts AS
SELECT k.chain, client, k.keys[ceil(random() * cardinality(k.keys))] AS key
  FROM (SELECT chain, array_agg(secret) AS keys FROM bench.keys GROUP BY chain) k,
       generate_series(0, 7) client;

-- How often a chain is drawn, by Zipf's law with exponent 1.05.
CREATE TABLE bench.zipf AS
SELECT chain, greatest(1, round(10000000 * sum(rank ^ -1.05)
                   / sum(sum(rank ^ -1.05)) OVER ()))::bigint AS weight
  FROM bench.keys WHERE chain LIKE 'zipf %' GROUP BY chain;

CREATE TABLE bench.texts (n bigint PRIMARY KEY, text text NOT NULL);
INSERT INTO bench.texts
SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, :rows) n;

-- A quota and a rate that never refuse.
SELECT FROM apikey_plan_create('Bench', 1000000000, 'month', plan_id => 'bench');
SELECT FROM apikey_limit_set('burst', 1000000, '1 second', plan_id => 'bench');
INSERT INTO apikeys.apis (id) VALUES ('default');

CREATE TABLE bench.made AS SELECT clock_timestamp() AS at;

-- What has been verified and counted so far, to tell afterwards whether a round
-- was what it says.
CREATE VIEW bench.verified AS
SELECT sum(value) FILTER (WHERE name = 'VALID') AS valid,
       sum(value) FILTER (WHERE name IN ('MALFORMED', 'NOT_FOUND', 'DISABLED', 'EXPIRED',
           'FORBIDDEN', 'INSUFFICIENT_PERMISSIONS', 'RATE_LIMITED', 'USAGE_EXCEEDED')) AS denied,
       (SELECT coalesce(sum(u.current_usage), 0) FROM apikeys.usage u) AS usage,
       (SELECT count(*) FROM apikeys.requests r
         WHERE r."timestamp" > (SELECT at FROM bench.made)) AS history
  FROM apikeys.stats;

-- The same with the usage that the meter says: its rows are up to ten intervals
-- behind, which a quick run does not wait for.
CREATE VIEW bench.verified_live AS
SELECT v.valid, v.denied,
       (SELECT coalesce(sum(coalesce(m.current_usage, u.current_usage)), 0)
          FROM apikeys.usage u
          FULL JOIN apikeys.meter() m USING (subject_id, period, period_start)) AS usage,
       v.history
  FROM bench.verified v;

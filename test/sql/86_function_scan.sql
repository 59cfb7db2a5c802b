-- The node that takes the Function Scan's place: where it does, and that
-- nothing but the time it takes is different.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('scan');
SELECT count(*) FROM apikey_plan_create('Scan', 1000, 'year', plan_id => 'scan');
SELECT id, api_key FROM apikey_create('scanned', 'sam', 'scan', '{"a": 1}', api_id => 'scan') \gset
CREATE FUNCTION used() RETURNS bigint LANGUAGE sql AS $$
    SELECT current_usage FROM apikey_list(api_id => 'scan') l, apikey_usage(l.id)
$$;
-- EXPLAIN, without the costs.
CREATE FUNCTION plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE 'EXPLAIN (COSTS OFF) ' || query;
END
$$;

-- Where it stands.
SELECT plan($$SELECT code FROM apikey_verify('x')$$);
SELECT plan($$SELECT upper(code), key_id FROM apikey_verify('x') WHERE valid AND remaining > 3$$);
SELECT plan($$SELECT v.code FROM (VALUES ('x'), ('y')) k (secret), apikey_verify(k.secret) v$$);
SELECT plan($$SELECT code FROM apikey_reserve('x', 3)$$);
EXPLAIN (COSTS OFF, VERBOSE) SELECT v.code, 1 AS one FROM apikey_verify('x') v WHERE v."limit" IS NULL;
-- Where it does not: whole rows, ordinals, more functions, sets, subqueries in the
-- call, and where rows may have to be fetched again.
SELECT plan($$SELECT v FROM apikey_verify('x') v$$);
SELECT plan($$SELECT code FROM apikey_verify('x') v WHERE v IS NOT NULL$$);
SELECT plan($$SELECT code, ordinality FROM apikey_verify('x') WITH ORDINALITY$$);
SELECT plan($$SELECT code FROM ROWS FROM (apikey_verify('x'), generate_series(1, 2)) v$$);
SELECT plan($$SELECT code FROM apikey_verify_many('{x}')$$);
SELECT plan($$SELECT v.code FROM (VALUES ('x'), ('y')) k (secret), apikey_verify((SELECT k.secret)) v$$);
SELECT plan($$SELECT v.code FROM pg_class c, apikey_verify('x') v FOR UPDATE OF c$$);
SELECT p FROM plan($$UPDATE apikeys.apis a SET name = v.code FROM apikey_verify('x') v WHERE a.id = 'scan'$$) p WHERE p ~ 'verify|Custom';

-- The same as the Function Scan, whatever is asked.
CREATE FUNCTION answers(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY EXECUTE format('SELECT to_jsonb(q) #>> ''{}'' FROM (%s) q', query);
END
$$;
SELECT to_jsonb(n) = to_jsonb(f) AS same, n.code
  FROM (SELECT valid, code, key_id, api_id, name, user_id, plan_id, plan_name, permissions, metadata, current_usage,
               "limit", remaining, reset_time, period, retry_after, expires_at, limits, repeated, credits
          FROM apikey_verify(:'api_key', cost => 0, charges => '{}') OFFSET 0) n,
       (SELECT valid, code, key_id, api_id, name, user_id, plan_id, plan_name, permissions, metadata, current_usage,
               "limit", remaining, reset_time, period, retry_after, expires_at, limits, repeated, credits
          FROM apikey_verify(:'api_key', cost => 0, charges => '{}') WITH ORDINALITY OFFSET 0) f;
SELECT answers($$SELECT count(*) FROM apikey_verify('x')$$);
SELECT answers($$SELECT 1 AS one FROM apikey_verify('x')$$);
SELECT answers($$SELECT code, code || key_id AS nothing, valid::int FROM apikey_verify('x')$$);
SELECT answers($$SELECT code FROM apikey_verify('x') WHERE valid$$);
SELECT answers($$SELECT code FROM apikey_verify(NULL)$$);

-- Called once, however often its row is read.
SET enable_material = off;
SELECT used();
SELECT count(*), count(DISTINCT v.current_usage)
  FROM generate_series(1, 5) n LEFT JOIN apikey_verify(:'api_key') v ON n <> 3;
RESET enable_material;
SELECT used();
-- Called for each row that it depends on; a row that has gone by is not held.
SELECT n, v.current_usage - first_value(v.current_usage) OVER (ORDER BY n) AS more
  FROM generate_series(1, 3) n, apikey_verify(:'api_key', cost => n) v ORDER BY n;
SELECT used();
SELECT n, m, v.code, v.current_usage IS NOT NULL AS counted
  FROM (VALUES (1, :'api_key'), (2, 'x'), (3, NULL)) k (n, secret)
 CROSS JOIN LATERAL apikey_verify(k.secret) v
  LEFT JOIN generate_series(1, 2) m ON v.valid
 ORDER BY n, m;
SELECT used();
-- Not called, where no row of it is needed.
SELECT n FROM generate_series(1, 0) n, apikey_verify(:'api_key');
SELECT code FROM apikey_verify(:'api_key') LIMIT 0;
SELECT code FROM apikey_verify(:'api_key') WHERE false;
SELECT used();
-- In a subquery that runs for each row, and in a view.
SELECT n, (SELECT v.code FROM apikey_verify(CASE WHEN n = 2 THEN :'api_key' ELSE 'x' END) v WHERE n > 1)
  FROM generate_series(1, 3) n;
CREATE VIEW verified AS SELECT v.valid, v.code FROM apikey_verify('x') v;
SELECT * FROM verified;

-- Cursors go back and forth.
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT code FROM apikey_verify(:'api_key');
FETCH c;
FETCH c;
FETCH BACKWARD c;
FETCH BACKWARD c;
FETCH c;
COMMIT;
SELECT used();
-- Columns are handed over as they are: a large one, also to a cursor that outlives
-- the transaction; of a call, and not of another in its arguments.
SELECT api_key AS large FROM apikey_create('large', 'sam', 'scan',
    jsonb_build_object('text', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) n)), api_id => 'scan') \gset
SELECT pg_column_size(metadata) > 8000 AS is_large, metadata ->> 'text' = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) n) AS same
  FROM apikey_verify(:'large');
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT metadata, name FROM apikey_verify(:'large');
COMMIT;
UPDATE apikeys.keys SET metadata = '{}' WHERE name = 'large';
VACUUM apikeys.keys;
CREATE TABLE held (length int, name text);
DO $$
DECLARE
    held CURSOR FOR SELECT 1;
    m jsonb;
    n text;
BEGIN
    held := 'held';
    FETCH held INTO m, n;
    INSERT INTO held VALUES (length(m ->> 'text'), n);
END
$$;
CLOSE held;
TABLE held;
DROP TABLE held;
SELECT code, name, key_id IS NULL AS no_key FROM apikey_verify('x', (apikey_verify(:'large')).name);
SELECT code, name FROM apikey_verify(:'large', (apikey_verify('x')).code);
-- Not of a type that has others.
BEGIN;
ALTER TYPE apikeys.verification ADD ATTRIBUTE more int;
SELECT code, more FROM apikey_verify(:'large');
ROLLBACK;
-- Counted as calls, where the server counts them.
BEGIN;
SET LOCAL track_functions = 'all';
SELECT n, code FROM generate_series(1, 3) n, apikey_verify(repeat('x', n));
SELECT pg_stat_get_xact_function_calls('apikey_verify'::regproc);
COMMIT;
-- A row that is changed with what was verified.
CREATE TABLE changed (n int, code text);
INSERT INTO changed VALUES (1), (2);
UPDATE changed c SET code = v.code FROM apikey_verify('x') v WHERE c.n = 1;
MERGE INTO changed c USING (SELECT code FROM apikey_verify(:'api_key')) v ON c.n = 2
 WHEN MATCHED THEN UPDATE SET code = v.code;
INSERT INTO changed SELECT 3, code FROM apikey_verify('x');
TABLE changed ORDER BY n;

-- Prepared: with each value, under both kinds of plan; after a change of rights.
PREPARE verify (text, bigint) AS SELECT code FROM apikey_verify($1, cost => $2);
SET plan_cache_mode = force_generic_plan;
EXECUTE verify (:'api_key', 1);
EXECUTE verify ('x', 1);
EXECUTE verify (NULL, 1);
EXECUTE verify (:'api_key', -1);
EXECUTE verify (:'api_key', 1);
SET plan_cache_mode = force_custom_plan;
EXECUTE verify (:'api_key', 1);
RESET plan_cache_mode;
SELECT used();
CREATE ROLE regress_nobody;
SET ROLE regress_nobody;
EXECUTE verify (:'api_key', 1);
SELECT code FROM apikey_verify('x');
RESET ROLE;

-- What a call leaves is freed before the next.
CREATE FUNCTION memory_used() RETURNS numeric LANGUAGE sql VOLATILE AS
    'SELECT sum(total_bytes) FROM pg_backend_memory_contexts';
SELECT max(q.code) AS code, max(q.memory) - min(q.memory) < 2000000 AS is_freed
  FROM (SELECT v.code, CASE WHEN n IN (10, 20000) THEN memory_used() END AS memory
          FROM generate_series(1, 20000) n, apikey_verify('x' || n) v) q;

DROP VIEW verified;
DROP TABLE changed;
DROP FUNCTION used(), plan(text), answers(text), memory_used();
DROP ROLE regress_nobody;

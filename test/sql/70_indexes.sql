-- Lists find their rows by index, however many there are.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('indexes'), ('indexes-few');
INSERT INTO apikeys.plans (id, name) VALUES ('indexes', 'Indexes');
INSERT INTO apikeys.keys (api_id, name, user_id, plan_id, start, digest, metadata)
SELECT CASE WHEN n % 1000 = 0 THEN 'indexes-few' ELSE 'indexes' END, 'k' || n, 'user ' || n % 2000,
       CASE WHEN n % 500 = 0 THEN 'indexes' END, 'ak_0000', sha256(n::text::bytea),
       jsonb_build_object('customer', n / 10, 'env', CASE WHEN n % 2 = 0 THEN 'live' ELSE 'test' END)
  FROM generate_series(1, 20000) n;
INSERT INTO apikeys.users (id, plan_id, metadata)
SELECT 'indexes ' || n, CASE WHEN n % 500 = 0 THEN 'indexes' END, jsonb_build_object('customer', n)
  FROM generate_series(1, 10000) n;
ANALYZE apikeys.keys;
ANALYZE apikeys.users;
SELECT id AS middle FROM apikeys.keys WHERE name = 'k10000' AND api_id = 'indexes-few' \gset

-- How many rows a list found, whether it read the whole table, and by which
-- index it went instead.
CREATE FUNCTION test.scans(relation regclass) RETURNS TABLE (scanned regclass, scans bigint)
LANGUAGE sql AS $$
SELECT relation, pg_stat_get_xact_numscans(relation)
 UNION ALL
SELECT indexrelid, pg_stat_get_xact_numscans(indexrelid) FROM pg_index WHERE indrelid = relation
$$;
CREATE FUNCTION test.scanned(relation regclass, statement text, OUT rows_found bigint, OUT scanned_by text)
LANGUAGE plpgsql AS $$
DECLARE
    before jsonb := (SELECT jsonb_object_agg(s.scanned, s.scans) FROM test.scans(relation) s);
BEGIN
    EXECUTE 'SELECT count(*) FROM ' || statement INTO rows_found;
    scanned_by := (SELECT string_agg(s.scanned::text, ', ' ORDER BY s.scanned::text COLLATE "C")
             FROM test.scans(relation) s
            WHERE s.scans > (before ->> s.scanned::text)::bigint);
END
$$;
SELECT l AS list, s.*
  FROM unnest(ARRAY[
    $$apikey_list(api_id => 'indexes-few')$$,
    $$apikey_list('user 7')$$,
    $$apikey_list('user 7', page_size => 1)$$,
    $$apikey_list('no such user')$$,
    $$apikey_list(plan_id => 'indexes')$$,
    $$apikey_list(metadata => '{"customer": 77}')$$,
    $$apikey_list(metadata => '{"customer": -1}')$$,
    $$apikey_list('user 7', metadata => '{"env": "test"}')$$,
    $$apikey_list()$$]) WITH ORDINALITY AS t(l, n),
    LATERAL test.scanned('apikeys.keys', l) s
 ORDER BY n;
SELECT s.* FROM test.scanned('apikeys.keys', format('apikey_list(after => %L)', :'middle')) s;
SELECT s.* FROM test.scanned('apikeys.keys', format('apikey_get(%L)', :'middle')) s;
SELECT s.* FROM test.scanned('apikeys.keys', $$(SELECT FROM generate_series(1, apikey_count(metadata => '{"customer": 77}'))) c$$) s;
SELECT l AS list, s.*
  FROM unnest(ARRAY[
    $$apikey_user_list()$$,
    $$apikey_user_list('indexes')$$,
    $$apikey_user_list(metadata => '{"customer": 77}')$$,
    $$apikey_user_get('indexes 77')$$]) WITH ORDINALITY AS t(l, n),
    LATERAL test.scanned('apikeys.users', l) s
 ORDER BY n;
-- The helper can tell: this one reads the whole table.
SELECT s.* FROM test.scanned('apikeys.keys', $$apikeys.keys WHERE name = 'k7' AND lower(api_id) LIKE 'indexes%'$$) s;
DROP FUNCTION test.scanned, test.scans;
DELETE FROM apikeys.keys WHERE api_id LIKE 'indexes%';
DELETE FROM apikeys.users WHERE id LIKE 'indexes %';
SELECT apikey_purge('0') >= 30000 AS purged;

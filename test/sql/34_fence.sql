-- A fence: secrets are refused until they are replaced.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('fence');
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Fence', plan_id => 'fence');
CREATE TEMP TABLE issued AS
SELECT k.id, k.api_key, v.name
  FROM (VALUES ('fay 1', 'fay', NULL, 'default'), ('fay 2', 'fay', 'fence', 'fence'),
               ('fay 3', 'fay', 'fence', 'default'), ('fred 1', 'fred', 'fence', 'fence'),
               ('fred 2', 'fred', NULL, 'default'), ('gone', 'fay', NULL, 'default'),
               ('off', 'fay', NULL, 'default'), ('past', 'fay', NULL, 'default')) v (name, user_id, plan_id, api_id),
       LATERAL apikey_create(v.name, v.user_id, v.plan_id, api_id => v.api_id) k;
SELECT d.name, status FROM issued i, LATERAL apikey_delete(i.id) d WHERE i.name = 'gone';
SELECT d.name, status FROM issued i, LATERAL apikey_update(i.id, '{"enabled": false}') d WHERE i.name = 'off';
-- Not long ago: a sweep would mark it as deleted.
SELECT d.name, status FROM issued i, LATERAL apikey_update(i.id, jsonb_build_object('expires_at', now() - interval '1 hour')) d WHERE i.name = 'past';
CREATE FUNCTION pg_temp.codes() RETURNS TABLE (name text, code text, status text)
LANGUAGE sql AS $$
SELECT i.name, v.code, k.status
  FROM issued i, LATERAL apikey_verify(i.api_key) v, LATERAL apikey_get(i.id) k
 ORDER BY i.name
$$;
SELECT * FROM pg_temp.codes();

-- Never all of them by accident, and nothing that does not exist.
SELECT s, test.refusal(s)
  FROM unnest(ARRAY['SELECT apikey_fence()', 'SELECT apikey_fence(NULL, NULL, NULL, NULL)',
    'SELECT apikey_fence(issued_before => now())', 'SELECT apikey_fence(''fay'', all_keys => true)',
    'SELECT apikey_fence(''nobody knows'')', 'SELECT apikey_fence(plan_id => ''none'')',
    'SELECT apikey_fence(api_id => ''none'')', 'SELECT apikey_unfence()',
    'SELECT apikey_unfence(''{}'', all_keys => true)', 'SELECT apikey_unfence(user_id => ''nobody knows'')',
    'SELECT apikey_unfence(''{00000000-0000-0000-0000-000000000000}'')',
    'SELECT apikey_unfence(''{NULL}'')']) s;
SELECT * FROM pg_temp.codes() WHERE code <> 'VALID';

-- Those to which all filters apply; again, there is nothing left to do.
SELECT apikey_fence('fay', 'fence', 'fence');
SELECT apikey_fence('fay', 'fence', 'fence');
SELECT * FROM pg_temp.codes() WHERE code = 'DISABLED';
SELECT apikey_unfence((SELECT array_agg(id) FROM issued));
SELECT apikey_fence(api_id => 'fence');
SELECT * FROM pg_temp.codes() WHERE code = 'DISABLED';
SELECT apikey_unfence(api_id => 'fence'), apikey_unfence('{}');

-- All keys of a user, whatever their state. The row is otherwise as it was.
RESET ROLE;
CREATE TEMP TABLE before AS SELECT * FROM apikeys.keys WHERE user_id IN ('fay', 'fred');
GRANT SELECT ON before TO regress_app;
SET ROLE regress_app;
SELECT apikey_fence('fay');
SELECT * FROM pg_temp.codes();
SELECT name, enabled, fenced_at IS NOT NULL AS fenced FROM apikey_list('fay') ORDER BY name;
RESET ROLE;
SELECT count(*) AS changed FROM before b, apikeys.keys k
 WHERE k.id = b.id AND to_jsonb(k) - '{fenced_at,last_used_at}'::text[] <> to_jsonb(b) - '{fenced_at,last_used_at}'::text[];
SELECT api_id, keys, deleted_keys FROM apikeys.fences ORDER BY api_id;
SET ROLE regress_app;

-- Nothing but a new secret, or the lifting of the fence, lets it in again.
SELECT d.name, status, enabled FROM issued i, LATERAL apikey_update(i.id, '{"enabled": true, "expires_at": null}') d
 WHERE i.name IN ('fay 1', 'off', 'past') ORDER BY d.name;
SELECT d.name, status FROM issued i, LATERAL apikey_restore(i.id) d WHERE i.name = 'gone';
SELECT * FROM pg_temp.codes();
SELECT test.refusal(format('SELECT apikey_update(%L, %L)', id, '{"fenced_at": null}')) FROM issued WHERE name = 'fay 1';

-- A new secret, and no grace for the old one.
SELECT test.refusal(format('SELECT apikey_regenerate(%L, %L)', id, '1 day')) LIKE '55000%is fenced%' AS refused
  FROM issued WHERE name = 'fay 1';
CREATE TEMP TABLE again AS
SELECT i.name, k.id, k.api_key, k.status, k.fenced_at
  FROM issued i, LATERAL apikey_regenerate(i.id) k WHERE i.name = 'fay 1';
SELECT a.name, a.status, a.fenced_at, v.code, (apikey_verify(i.api_key)).code AS old_code
  FROM again a JOIN issued i USING (id), LATERAL apikey_verify(a.api_key) v;
-- The next one may have a grace again; a fence refuses both secrets, and its
-- lifting lets both in.
SELECT name, previous_expires_at > now() AS has_grace FROM apikey_regenerate((SELECT id FROM again), '1 day');
SELECT code FROM apikey_verify((SELECT api_key FROM again));
SELECT apikey_fence('fay');
SELECT code FROM apikey_verify((SELECT api_key FROM again));
SELECT apikey_unfence(ARRAY(SELECT id FROM again));
SELECT code FROM apikey_verify((SELECT api_key FROM again));

-- What is disabled while it is fenced stays so.
SELECT d.name, status FROM issued i, LATERAL apikey_update(i.id, '{"enabled": false}') d WHERE i.name = 'fay 2';
SELECT k.name, k.status, k.fenced_at, v.code
  FROM issued i, LATERAL apikey_regenerate(i.id) k, LATERAL apikey_verify(k.api_key) v WHERE i.name = 'fay 2';
SELECT apikey_unfence(user_id => 'fay');
SELECT * FROM pg_temp.codes();

-- What was issued since a moment is spared, unless an older secret still works.
SELECT clock_timestamp() AS moment \gset
CREATE TEMP TABLE since AS
SELECT k.id, k.name, k.api_key FROM apikey_create('new', 'fred') k
UNION ALL
SELECT k.id, k.name || ' again', k.api_key FROM issued i, LATERAL apikey_regenerate(i.id) k WHERE i.name = 'fred 1'
UNION ALL
SELECT k.id, k.name || ' again', k.api_key FROM issued i, LATERAL apikey_regenerate(i.id, '1 day') k WHERE i.name = 'fred 2';
SELECT apikey_fence('fred', issued_before => :'moment');
SELECT s.name, v.code FROM since s, LATERAL apikey_verify(s.api_key) v ORDER BY s.name;
SELECT apikey_fence('fred', issued_before => 'infinity'), apikey_fence('fred', issued_before => '-infinity');
SELECT apikey_unfence(user_id => 'fred');

-- It is decided before the other outcomes, and consumes nothing.
SELECT apikey_fence('fred');
SELECT code, name, "limit", remaining FROM apikey_verify((SELECT api_key FROM since WHERE name = 'new'), api_id => 'default', permissions => 'none');
SELECT code FROM apikey_verify((SELECT api_key FROM since WHERE name = 'new'), api_id => 'fence');
SELECT status, name FROM apikey_whoami((SELECT api_key FROM since WHERE name = 'new'));

-- A fence that is rolled back never was.
SELECT apikey_unfence(user_id => 'fred');
BEGIN;
SELECT apikey_fence(all_keys => true) >= (SELECT count(*) FROM issued) AS all_of_them;
SELECT count(*) FROM pg_temp.codes() WHERE code = 'VALID';
ROLLBACK;
SELECT code FROM apikey_verify((SELECT api_key FROM since WHERE name = 'new'));

-- By whoever is not granted it, it is refused.
RESET ROLE;
SET ROLE regress_viewer;
SELECT test.refusal('SELECT apikey_fence(''fay'')'), test.refusal('SELECT apikey_unfence(user_id => ''fay'')');
RESET ROLE;
-- A DBA may do so by hand.
UPDATE apikeys.keys SET fenced_at = now() WHERE id = (SELECT id FROM since WHERE name = 'new');
SELECT code FROM apikey_verify((SELECT api_key FROM since WHERE name = 'new'));
UPDATE apikeys.keys SET fenced_at = NULL WHERE id = (SELECT id FROM since WHERE name = 'new');
SELECT code FROM apikey_verify((SELECT api_key FROM since WHERE name = 'new'));
DROP FUNCTION pg_temp.codes();
DROP TABLE issued, again, since, before;

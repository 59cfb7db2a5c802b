-- Revoking many keys at once, and erasing a person.
\set SHOW_CONTEXT never
SET ROLE regress_app;

-- ----- Revoking -----

SELECT count(*) FROM apikey_plan_create('Revoke', plan_id => 'revoke');
SELECT count(*) FROM apikey_plan_create('Revoke too', plan_id => 'revoke-too');
RESET ROLE;
INSERT INTO apikeys.apis (id) VALUES ('revoke');
SET ROLE regress_app;
CREATE TEMP TABLE issued AS
SELECT k.id, k.api_key, v.name
  FROM (VALUES ('rob 1', 'rob', NULL, 'default'), ('rob 2', 'rob', 'revoke', 'default'),
               ('rob 3', 'rob', 'revoke', 'revoke'), ('rob 4', 'rob', 'revoke-too', 'revoke'),
               ('rosa 1', 'rosa', 'revoke', 'default'), ('rosa 2', 'rosa', NULL, 'revoke'),
               ('nobody', NULL, 'revoke', 'revoke')) v (name, user_id, plan_id, api_id),
       LATERAL apikey_create(v.name, v.user_id, v.plan_id, api_id => v.api_id) k;
CREATE FUNCTION pg_temp.codes() RETURNS TABLE (name text, code text)
LANGUAGE sql AS $$
SELECT i.name, v.code FROM issued i, LATERAL apikey_verify(i.api_key) v ORDER BY i.name
$$;

-- Never all of them by accident, and nothing that does not exist.
SELECT s, test.refusal(s)
  FROM unnest(ARRAY['SELECT apikey_revoke()', 'SELECT apikey_revoke(NULL, NULL, NULL)',
    'SELECT apikey_revoke(''nobody knows'')', 'SELECT apikey_revoke('''')',
    'SELECT apikey_revoke(plan_id => ''none'')', 'SELECT apikey_revoke(api_id => ''none'')',
    'SELECT apikey_revoke(''rob'', ''none'')', 'SELECT apikey_revoke(''none'', ''revoke'')']) s;
SELECT * FROM pg_temp.codes();

-- Those to which all filters apply; again, there is nothing left to do.
SELECT apikey_revoke('rob', 'revoke', 'revoke');
SELECT * FROM pg_temp.codes() WHERE code <> 'VALID';
SELECT apikey_revoke('rob', 'revoke', 'revoke');
SELECT apikey_revoke(plan_id => 'revoke', api_id => 'default');
SELECT * FROM pg_temp.codes() WHERE code <> 'VALID';
SELECT apikey_revoke('rob');
SELECT apikey_revoke(plan_id => 'revoke');
SELECT apikey_revoke(api_id => 'revoke');
SELECT * FROM pg_temp.codes();
-- Known by a row alone, or by deleted keys alone.
SELECT count(*) FROM apikey_user_create('rita');
SELECT apikey_revoke('rita'), apikey_revoke('rosa');
-- A deleted plan still has keys.
SELECT count(*) FROM apikey_create('late', plan_id => 'revoke-too');
SELECT count(*) FROM apikey_plan_delete('revoke-too');
SELECT apikey_revoke(plan_id => 'revoke-too');
-- What happened can be looked up, and undone.
SELECT name, status FROM apikey_list('rob', include_deleted => true);
SELECT count(DISTINCT deleted_at) FROM apikey_list(plan_id => 'revoke', include_deleted => true) WHERE user_id IS NULL;
SELECT status FROM apikey_restore((SELECT id FROM issued WHERE name = 'rob 1'));
SELECT * FROM pg_temp.codes() WHERE code = 'VALID';
-- A revoke that is rolled back never was.
BEGIN;
SELECT apikey_revoke('rob');
SELECT code FROM pg_temp.codes() WHERE name = 'rob 1';
ROLLBACK;
SELECT code FROM pg_temp.codes() WHERE name = 'rob 1';
-- By whoever is not granted it, it is refused.
RESET ROLE;
SET ROLE regress_viewer;
SELECT test.refusal('SELECT apikey_revoke(''rob'')'), test.refusal('SELECT apikey_erase_user(''rob'')');
RESET ROLE;
DROP FUNCTION pg_temp.codes();
DROP TABLE issued;

-- ----- Erasing -----

-- Everything that the extension's tables hold, row by row, as text.
CREATE FUNCTION test.dump() RETURNS TABLE (relation text, content text)
LANGUAGE plpgsql AS $$
DECLARE
    rel regclass;
BEGIN
    FOR rel IN SELECT c.oid FROM pg_class c
                WHERE c.relnamespace = 'apikeys'::regnamespace AND c.relkind IN ('r', 'm') LOOP
        RETURN QUERY EXECUTE format('SELECT %L, t::text FROM %s t', rel, rel);
    END LOOP;
END
$$;
-- Which tables still know the person, and by what.
CREATE VIEW test.traces AS
SELECT d.relation ~ '^apikeys\.requests_' AS is_history, array_agg(DISTINCT p.trace) AS traces
  FROM test.dump() d,
       unnest('{Eve Eriksson,100.64.9.9,eve@example.com,eves-laptop,eves-phone,eve-in-metadata,eve-of-user,100.64.7.7,2001:db8:7::e,100.64.77}'::text[]) p (trace)
 WHERE strpos(lower(d.content), lower(p.trace)) > 0
 GROUP BY 1 ORDER BY 1;

SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Erase', 100, 'year', plan_id => 'erase');
SELECT count(*) FROM apikey_user_create('eve', 'Eve Eriksson', 'eve@example.com', 'erase', metadata => '{"a": "eve-of-user"}');
SELECT id AS laptop, api_key AS laptop_key
  FROM apikey_create('eves-laptop', 'eve', metadata => '{"m": "eve-in-metadata"}',
                     allowed_ips => '{100.64.7.0/24,2001:db8:7::/48,100.64.77.0/24}') \gset
SELECT id AS phone, api_key AS phone_key FROM apikey_create('eves-phone', 'eve', permissions => '{docs.read}') \gset
SELECT id AS gone, api_key AS gone_key FROM apikey_create('eves-phone before', 'eve', expires_at => now() + '1 day') \gset
-- Not so long ago that a sweep would mark it as deleted.
SELECT count(*) FROM apikey_update(:'gone', jsonb_build_object('expires_at', now() - interval '1 hour'));
SELECT count(*) FROM apikey_user_create('erik', 'Erik', 'erik@example.com', 'erase');
SELECT id AS other, api_key AS other_key FROM apikey_create('eriks', 'erik', metadata => '{"keep": 1}') \gset
SELECT code FROM apikey_verify(:'laptop_key', '/v1/a', 'GET', '100.64.7.7', cost => 5, tags => '{t}');
SELECT code FROM apikey_verify(:'laptop_key', '/v1/b', 'GET', '100.64.9.9');
SELECT code FROM apikey_verify(:'phone_key', '/v1/c', 'GET', '2001:db8:7::e');
SELECT code FROM apikey_verify(:'gone_key', '/v1/d', 'GET', '100.64.7.7');
SELECT code FROM apikey_verify(:'other_key', '/v1/e', 'GET', '192.0.2.9');
RESET ROLE;
CALL test.until('(SELECT count(*) = 5 FROM apikeys.requests WHERE endpoint ~ ''^/v1/[a-e]$'')');
SELECT * FROM test.traces;
SELECT subject_id AS subject FROM apikeys.users WHERE id = 'eve' \gset

SET ROLE regress_app;
SELECT s, test.refusal(s)
  FROM unnest(ARRAY['SELECT apikey_erase_user(NULL)', 'SELECT apikey_erase_user(''nobody knows'')',
                    'SELECT apikey_erase_user('''')']) s;
-- What is rolled back is not erased.
BEGIN;
SELECT name, email FROM apikey_erase_user('eve');
SELECT code FROM apikey_verify(:'laptop_key', ip_address => '100.64.7.7', cost => 0);
ROLLBACK;
SELECT name, email, erased_at FROM apikey_user_get('eve');

SELECT id, name, email, plan_id, metadata, deleted_at = now() AS deleted, erased_at = now() AS erased
  FROM apikey_erase_user('eve');
RESET ROLE;
SELECT * FROM test.traces;
SET ROLE regress_app;
-- No key of hers works, nor leaves a trace.
SELECT code FROM apikey_verify(:'laptop_key', '/v1/f', 'GET', '100.64.7.7');
SELECT code FROM apikey_verify(:'phone_key', '/v1/f', 'GET', '100.64.7.7');
SELECT code FROM apikey_verify(:'gone_key', '/v1/f', 'GET', '100.64.7.7');
SELECT code FROM apikey_verify(:'other_key', '/v1/f', 'GET', '192.0.2.9');
-- The totals are there.
SELECT current_usage, subject FROM apikey_user_usage('eve');
RESET ROLE;
SELECT subject_id = :'subject' AS same_subject FROM apikeys.users WHERE id = 'eve';
CALL test.until('(SELECT count(*) = 1 FROM apikeys.requests WHERE endpoint = ''/v1/f'')');
SELECT endpoint, code, cost, ip_address, tags FROM apikeys.requests WHERE endpoint ~ '^/v1/[a-f]$' ORDER BY endpoint;
SELECT name, metadata, allowed_ips, permissions, expires_at, deleted_at = erased_at AS at_once
  FROM apikeys.keys WHERE user_id = 'eve' ORDER BY id;
SELECT * FROM test.traces;
-- Nobody else's.
SELECT name, metadata, deleted_at, erased_at FROM apikeys.keys WHERE user_id = 'erik';

-- Again: the same.
SELECT erased_at AS first_erased_at FROM apikeys.users WHERE id = 'eve' \gset
SET ROLE regress_app;
SELECT name, erased_at = :'first_erased_at' AS same FROM apikey_erase_user('eve');
-- Her keys do not come back, whoever asks.
SELECT replace(test.refusal(format('SELECT apikey_restore(%L)', :'laptop')), :'laptop', '(id)');
RESET ROLE;
SELECT test.refusal(format('UPDATE apikeys.keys SET deleted_at = NULL WHERE id = %L', :'laptop'));
SELECT test.refusal('UPDATE apikeys.users SET deleted_at = NULL WHERE id = ''eve''');
SELECT test.refusal('SELECT apikey_user_update(''eve'', ''{"name": "Eve Eriksson"}'')');

-- A namesake: the id is made anew, the old keys stay away.
SET ROLE regress_app;
SELECT id, name, deleted_at, erased_at FROM apikey_user_create('eve', 'Eve Two', plan_id => 'erase');
SELECT replace(test.refusal(format('SELECT apikey_restore(%L)', :'laptop')), :'laptop', '(id)');
SELECT code FROM apikey_verify(:'laptop_key');
SELECT api_key AS new_key FROM apikey_create('new', 'eve') \gset
SELECT code, current_usage FROM apikey_verify(:'new_key');
SELECT name, erased_at = now() AS erased FROM apikey_erase_user('eve');
SELECT code FROM apikey_verify(:'new_key');

-- Known by keys alone: a row is made, which tells of it.
SELECT id AS rowless, api_key AS rowless_key FROM apikey_create('eves-phone', 'eve-too') \gset
SELECT count(*) FROM apikey_user_get('eve-too');
SELECT code FROM apikey_verify(:'rowless_key', '/v1/late', 'GET', '100.64.7.7');
SELECT id, deleted_at = now() AS deleted, erased_at = now() AS erased FROM apikey_erase_user('eve-too');
SELECT code FROM apikey_verify(:'rowless_key');
-- Known by a row alone, and deleted before: the time of that stays.
SELECT count(*) FROM apikey_user_create('eve-three', 'Eve Eriksson');
SELECT deleted_at AS first_deleted_at FROM apikey_user_delete('eve-three') \gset
SELECT name, deleted_at = :'first_deleted_at' AS same, erased_at = now() AS erased FROM apikey_erase_user('eve-three');
RESET ROLE;

-- What reaches the history after is cleared by the worker's sweep; only then,
-- and an hour later, has it forgotten whom to look for. Others stay.
SELECT count(*) FROM apikeys.erasures;
INSERT INTO apikeys.requests ("timestamp", key_id, status, code, ip_address, cost)
SELECT t, k, 'allowed', 'VALID', '100.64.7.7', 1
  FROM unnest(ARRAY[now() - interval '1 hour', now()]) t, unnest(ARRAY[:'laptop', :'rowless', :'other']::uuid[]) k;
ALTER SYSTEM SET apikeys.sweep_interval = '1s';
SELECT pg_reload_conf();
CALL test.until('(SELECT bool_and(noticed_at IS NOT NULL) FROM apikeys.erasures)');
CALL test.until('(SELECT count(*) = 2 FROM apikeys.requests WHERE ip_address = ''100.64.7.7'')');
CALL test.until('(SELECT count(*) = 1 FROM apikeys.requests WHERE endpoint = ''/v1/late'' AND ip_address IS NULL)');
SELECT DISTINCT key_id = :'other' AS is_other FROM apikeys.requests WHERE ip_address = '100.64.7.7';
UPDATE apikeys.erasures SET noticed_at = now() - interval '61 minutes' WHERE key_id <> :'laptop';
CALL test.until('(SELECT count(*) = 1 FROM apikeys.erasures)');
SELECT key_id = :'laptop' AS is_left FROM apikeys.erasures;
-- Also when the keys themselves are gone.
UPDATE apikeys.keys SET deleted_at = now() - interval '1 year' WHERE erased_at IS NOT NULL;
SELECT apikey_purge('1 month') AS purged;
INSERT INTO apikeys.requests ("timestamp", key_id, status, code, ip_address, cost)
VALUES (now(), :'laptop', 'allowed', 'VALID', '100.64.77.1', 1);
CALL test.until('(SELECT count(*) = 0 FROM apikeys.requests WHERE ip_address = ''100.64.77.1'')');
UPDATE apikeys.erasures SET noticed_at = now() - interval '61 minutes';
CALL test.until('(SELECT count(*) = 0 FROM apikeys.erasures)');
ALTER SYSTEM RESET apikeys.sweep_interval;
SELECT pg_reload_conf();
DELETE FROM apikeys.requests WHERE ip_address = '100.64.7.7';
SELECT * FROM test.traces;
DROP VIEW test.traces;
DROP FUNCTION test.dump();

-- DELETE marks a row, whoever gives it and however; apikey_purge removes it.
\set SHOW_CONTEXT never
SELECT apikey_purge('0') >= 0 AS nothing_left;
CREATE ROLE regress_dba;
GRANT USAGE ON SCHEMA apikeys TO regress_dba;
GRANT SELECT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA apikeys TO regress_dba;
GRANT SET ON PARAMETER session_replication_role TO regress_dba;

SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Soft', 10, 'year', plan_id => 'soft', key_lifetime => '1 year');
SELECT count(*) FROM apikey_user_create('sue', email => 'sue@example.com', plan_id => 'soft');
SELECT id AS s1, api_key AS s1_key FROM apikey_create('s1', 'sue', metadata => '{"soft": 1}', permissions => '{a}') \gset
SELECT id AS s2, api_key AS s2_key FROM apikey_create('s2', 'sue', 'soft', metadata => '{"soft": 2}') \gset
SELECT id AS s3, api_key AS s3_key FROM apikey_create('s3', metadata => '{"soft": 3}') \gset
SELECT code, current_usage FROM apikey_verify(:'s1_key');

-- By a role that may not insert. The answer counts the rows and returns them.
SET ROLE regress_dba;
SELECT to_jsonb(k) - '{deleted_at,updated_at,last_used_at}'::text[] AS before FROM apikeys.keys k WHERE id = :'s1' \gset
\set QUIET off
DELETE FROM apikeys.keys WHERE id = :'s1' RETURNING name, metadata, deleted_at;
\set QUIET on
SELECT to_jsonb(k) - '{deleted_at,updated_at,last_used_at}'::text[] = :'before' AS else_unchanged,
       deleted_at IS NOT NULL AS deleted, updated_at = deleted_at AS updated
  FROM apikeys.keys k WHERE id = :'s1';
-- Again: it stays as it is.
SELECT deleted_at AS first_deleted_at FROM apikeys.keys WHERE id = :'s1' \gset
\set QUIET off
DELETE FROM apikeys.keys WHERE id = :'s1';
\set QUIET on
SELECT deleted_at = :'first_deleted_at' AS same FROM apikeys.keys WHERE id = :'s1';
\set QUIET off
DELETE FROM apikeys.keys WHERE id = '00000000-0000-7000-8000-000000000000';
DELETE FROM apikeys.keys WHERE metadata @> '{"soft": 2}' OR metadata @> '{"soft": 3}';
\set QUIET on
-- Several at once, with a join and from a WITH.
WITH gone AS (DELETE FROM apikeys.keys k USING apikeys.plans p
               WHERE p.id = 'soft' AND (k.plan_id = p.id OR k.metadata = '{"soft": 3}') RETURNING k.name)
SELECT count(*) FROM gone;
RESET ROLE;
SET ROLE regress_app;
SELECT name, status FROM apikey_list(metadata => '{"soft": 2}', include_deleted => true);
SELECT k, v.code FROM unnest(ARRAY['s1', 's2', 's3'], ARRAY[:'s1_key', :'s2_key', :'s3_key']) AS t(k, secret),
    LATERAL apikey_verify(secret) v ORDER BY k;

-- Made and deleted in one transaction: nothing is defaulted a second time.
BEGIN;
SELECT id AS s4 FROM apikey_create('s4', plan_id => 'soft', metadata => '{"soft": 4}') \gset
SELECT count(*) FROM apikey_update(:'s4', '{"expires_at": null}');
RESET ROLE;
DELETE FROM apikeys.keys WHERE id = :'s4';
SELECT expires_at, deleted_at IS NOT NULL AS deleted FROM apikeys.keys WHERE id = :'s4';
COMMIT;
-- Expired ones too.
SET ROLE regress_app;
SELECT id AS s5 FROM apikey_create('s5', metadata => '{"soft": 5}', expires_at => now() + interval '1 day') \gset
SELECT status FROM apikey_update(:'s5', '{"expires_at": "2001-01-01T00:00:00Z"}');
SET ROLE regress_dba;
DELETE FROM apikeys.keys WHERE id = :'s5' RETURNING name;

-- A rolled-back DELETE did nothing.
SET ROLE regress_app;
SELECT id AS s6, api_key AS s6_key FROM apikey_create('s6', 'sue', metadata => '{"soft": 6}') \gset
SET ROLE regress_dba;
BEGIN;
DELETE FROM apikeys.keys WHERE id = :'s6';
ROLLBACK;
SELECT deleted_at FROM apikeys.keys WHERE id = :'s6';

-- Plans and users, though keys refer to them.
\set QUIET off
DELETE FROM apikeys.users WHERE id = 'sue' RETURNING id, email, deleted_at;
DELETE FROM apikeys.plans WHERE id = 'soft' RETURNING id, deleted_at;
\set QUIET on
SELECT id, plan_id, deleted_at IS NOT NULL AS deleted, updated_at = deleted_at AS updated FROM apikeys.users WHERE id = 'sue';
SELECT id, max_requests, key_lifetime, deleted_at IS NOT NULL AS deleted, updated_at = deleted_at AS updated FROM apikeys.plans WHERE id = 'soft';
SET ROLE regress_app;
SELECT code FROM apikey_verify(:'s6_key');
SELECT count(*) FROM apikey_user_create('sue', email => 'sue@example.com');
SELECT code, current_usage FROM apikey_verify(:'s6_key', cost => 0);

-- No setting of a session turns it off.
SELECT id AS s7, api_key AS s7_key FROM apikey_create('s7', metadata => '{"soft": 7}') \gset
SET ROLE regress_dba;
SET session_replication_role = replica;
\set QUIET off
DELETE FROM apikeys.keys WHERE id = :'s7';
DELETE FROM apikeys.users WHERE id = 'sue';
\set QUIET on
SELECT test.refusal('TRUNCATE apikeys.keys CASCADE');
RESET session_replication_role;
SELECT deleted_at IS NOT NULL AS deleted FROM apikeys.keys WHERE id = :'s7';
SELECT deleted_at IS NOT NULL AS deleted FROM apikeys.users WHERE id = 'sue';
SELECT test.refusal('ALTER TABLE apikeys.keys DISABLE TRIGGER "0_soft_delete"');
-- A change made so is known to the other sessions' caches and one's own.
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Replica', plan_id => 'soft-replica');
SELECT api_key AS s8_key FROM apikey_create('s8', plan_id => 'soft-replica') \gset
SELECT code FROM apikey_verify(:'s8_key');
RESET ROLE;
SET session_replication_role = replica;
UPDATE apikeys.plans SET is_active = false WHERE id = 'soft-replica';
RESET session_replication_role;
SELECT code FROM apikey_verify(:'s8_key');

-- TRUNCATE.
SET ROLE regress_dba;
SELECT t, test.refusal('TRUNCATE apikeys.' || t || ' CASCADE')
  FROM unnest('{keys,users,plans,apis,usage,incarnations}'::text[]) t;

-- Whatever was deleted is there until it is purged.
RESET ROLE;
SELECT apikey_purge('1 hour');
SELECT test.refusal('SELECT apikey_purge(NULL)');
SELECT test.refusal('SELECT apikey_purge(''-1 hour'')');
SELECT count(*) FROM apikeys.keys WHERE deleted_at IS NOT NULL;
UPDATE apikeys.keys SET deleted_at = now() - interval '2 hours' WHERE id = :'s1';
SELECT apikey_purge('1 hour');
SELECT name FROM apikeys.keys WHERE deleted_at IS NOT NULL ORDER BY id;
-- What a key still refers to stays.
SELECT apikey_purge('0');
SELECT count(*) FROM apikeys.keys WHERE deleted_at IS NOT NULL;
SELECT id FROM apikeys.plans WHERE deleted_at IS NOT NULL;
SELECT id FROM apikeys.users WHERE deleted_at IS NOT NULL;
SELECT apikey_purge('0');
-- Only while it runs.
SELECT apikeys.in_purge();
SET ROLE regress_app;
SELECT count(*) FROM apikey_get(:'s1');
SELECT code FROM apikey_verify(:'s1_key');
RESET ROLE;
SELECT api_key AS s9_key, id AS s9 FROM apikey_create('s9') \gset
DELETE FROM apikeys.keys WHERE id = :'s9';
SELECT count(*) FROM apikeys.keys WHERE id = :'s9';
-- Also after a purge that failed.
BEGIN;
SAVEPOINT s;
SELECT apikey_purge('0');
ROLLBACK TO s;
DELETE FROM apikeys.keys WHERE id = :'s9';
COMMIT;
SELECT count(*) FROM apikeys.keys WHERE id = :'s9';

-- A key whose user is deleted stays refused, whatever is purged: without the
-- user's row it would be let in, and without the user's limits.
SELECT count(*) FROM apikey_plan_create('One', 1, plan_id => 'soft-one');
SELECT count(*) FROM apikey_user_create('soft-locked-out', plan_id => 'soft-one');
SELECT count(*) FROM apikey_user_create('soft-keyless');
SELECT count(*) FROM apikey_limit_set('burst', 1, '1 second', user_id => 'soft-locked-out');
SELECT count(*) FROM apikey_limit_set('burst', 1, '1 second', user_id => 'soft-keyless');
SELECT id AS s10, api_key AS s10_key FROM apikey_create('s10', 'soft-locked-out') \gset
SELECT count(*) FROM apikey_user_delete('soft-locked-out');
SELECT count(*) FROM apikey_user_delete('soft-keyless');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT apikey_purge('0') > 0 AS purged;
COMMIT;
SELECT code FROM apikey_verify(:'s10_key', cost => 1000);
SELECT id FROM apikeys.users WHERE id IN ('soft-locked-out', 'soft-keyless');
SELECT name, user_id FROM apikeys.limits WHERE user_id IN ('soft-locked-out', 'soft-keyless');
-- Nor does a deleted key that is restored after its user's purge come back alone.
DELETE FROM apikeys.keys WHERE id = :'s10';
UPDATE apikeys.users SET deleted_at = now() - interval '2 hours' WHERE id = 'soft-locked-out';
SELECT apikey_purge('1 hour');
SELECT count(*) FROM apikey_restore(:'s10');
SELECT code FROM apikey_verify(:'s10_key');
-- The two go together.
DELETE FROM apikeys.keys WHERE id = :'s10';
SELECT apikey_purge('0');
SELECT id FROM apikeys.users WHERE id = 'soft-locked-out';
SELECT id FROM apikeys.limits WHERE user_id = 'soft-locked-out';

-- Columns that a DBA has added are kept, and computed.
ALTER TABLE apikeys.keys ADD COLUMN gone int DEFAULT 7, ADD COLUMN note text DEFAULT 'none',
    ADD COLUMN number int GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN "the team" text GENERATED ALWAYS AS (metadata ->> 'team') STORED;
ALTER TABLE apikeys.plans ADD COLUMN upper_name text GENERATED ALWAYS AS (upper(name)) STORED;
ALTER TABLE apikeys.users ADD COLUMN upper_name text GENERATED ALWAYS AS (upper(name)) STORED;
ALTER TABLE apikeys.keys DROP COLUMN gone;
SELECT id AS s11, api_key AS s11_key FROM apikey_create('s11', metadata => '{"team": "red"}') \gset
SELECT count(*) FROM apikey_plan_create('Soft 2', plan_id => 'soft-2');
SELECT count(*) FROM apikey_user_create('soft-2', 'Sam');
UPDATE apikeys.keys SET note = 'kept' WHERE id = :'s11';
SELECT to_jsonb(k) - '{deleted_at,updated_at,last_used_at}'::text[] AS before FROM apikeys.keys k WHERE id = :'s11' \gset
SELECT code FROM apikey_verify(:'s11_key');
DELETE FROM apikeys.keys WHERE id = :'s11' RETURNING note, "the team";
DELETE FROM apikeys.plans WHERE id = 'soft-2' RETURNING upper_name;
DELETE FROM apikeys.users WHERE id = 'soft-2' RETURNING upper_name;
SELECT to_jsonb(k) - '{deleted_at,updated_at,last_used_at}'::text[] = :'before' AS else_unchanged,
       deleted_at IS NOT NULL AS deleted, note, "the team"
  FROM apikeys.keys k WHERE id = :'s11';
SELECT code FROM apikey_verify(:'s11_key');
SELECT upper_name FROM apikeys.plans WHERE id = 'soft-2' AND deleted_at IS NOT NULL
 UNION ALL SELECT upper_name FROM apikeys.users WHERE id = 'soft-2' AND deleted_at IS NOT NULL;
ALTER TABLE apikeys.keys DROP COLUMN note, DROP COLUMN number, DROP COLUMN "the team";
ALTER TABLE apikeys.plans DROP COLUMN upper_name;
ALTER TABLE apikeys.users DROP COLUMN upper_name;

REVOKE ALL ON ALL TABLES IN SCHEMA apikeys FROM regress_dba;
REVOKE ALL ON SCHEMA apikeys FROM regress_dba;
REVOKE ALL ON PARAMETER session_replication_role FROM regress_dba;
DROP ROLE regress_dba;

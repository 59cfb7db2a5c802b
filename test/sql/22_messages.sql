-- What an error says beyond its message: why, and what to do about it.
\set SHOW_CONTEXT never

-- How a statement is refused, in full.
CREATE FUNCTION test.refusal_in_full(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(E'\n', SQLSTATE || ' ' || message, 'DETAIL ' || nullif(detail, ''), 'HINT ' || nullif(hint, ''));
END
$$;

SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Messages', plan_id => 'messages');
SELECT count(*) FROM apikey_plan_create('Gone', plan_id => 'messages-gone');
SELECT count(*) FROM apikey_plan_delete('messages-gone');
SELECT count(*) FROM apikey_user_create('messages');
SELECT count(*) FROM apikey_user_create('messages-gone');
SELECT id AS old_key, api_key AS old_secret FROM apikey_create('old', 'messages-gone') \gset
SELECT count(*) FROM apikey_user_delete('messages-gone');
SELECT id AS live FROM apikey_create('live', 'messages-without-row') \gset

-- No key is made for, or given to, a user or a plan that was deleted: it would
-- be refused from the first request on.
SELECT test.refusal_in_full($$SELECT apikey_create('k', 'messages-gone')$$);
SELECT test.refusal_in_full($$SELECT apikey_create('k', plan_id => 'messages-gone')$$);
SELECT test.refusal_in_full(format('SELECT apikey_update(%L, ''{"user_id": "messages-gone"}'')', :'live'));
SELECT test.refusal_in_full(format('SELECT apikey_update(%L, ''{"plan_id": "messages-gone"}'')', :'live'));
-- What was deleted does not exist for who changes something; the error says why.
SELECT id AS deleted FROM apikey_create('deleted') \gset
SELECT count(*) FROM apikey_delete(:'deleted');
\pset tuples_only on
\pset format unaligned
SELECT s.action, replace(test.refusal_in_full(format('SELECT ' || s.action, :'deleted')), :'deleted', '(id)')
  FROM unnest(ARRAY['apikey_delete(%L)', 'apikey_update(%L, ''{"name": "k"}'')', 'apikey_regenerate(%L)',
                    'apikey_regenerate(%L, ''1 hour'')', 'apikey_credits(%L, ''set'', 1)',
                    'apikey_limit_set(''l'', 1, ''1 s'', key_id => %L)', 'apikey_limit_list(key_id => %L)',
                    'apikey_limit_delete(''l'', key_id => %L)']) AS s(action);
-- For good, if its user was erased.
BEGIN;
SELECT id AS erased FROM apikey_create('erased', 'messages-erased') \gset
SELECT count(*) FROM apikey_erase_user('messages-erased');
SELECT replace(test.refusal_in_full(format('SELECT %s(%L)', f, :'erased')), :'erased', '(id)')
  FROM unnest('{apikey_delete,apikey_regenerate,apikey_restore}'::text[]) f;
ROLLBACK;
SELECT s.action, test.refusal_in_full('SELECT ' || s.action)
  FROM unnest(ARRAY['apikey_user_delete(''messages-gone'')', 'apikey_user_update(''messages-gone'', ''{}'')',
                    'apikey_user_credits(''messages-gone'', ''set'', 1)',
                    'apikey_limit_set(''l'', 1, ''1 s'', user_id => ''messages-gone'')',
                    'apikey_plan_delete(''messages-gone'')', 'apikey_plan_update(''messages-gone'', ''{}'')',
                    'apikey_limit_set(''l'', 1, ''1 s'', plan_id => ''messages-gone'')',
                    'apikey_user_create(''messages'', plan_id => ''messages-gone'')']) AS s(action);
-- What never was has nothing to undo.
SELECT s.action, test.refusal_in_full('SELECT ' || s.action)
  FROM unnest(ARRAY['apikey_delete(''00000000-0000-7000-8000-000000000000'')',
                    'apikey_regenerate(''00000000-0000-7000-8000-000000000000'')',
                    'apikey_restore(''00000000-0000-7000-8000-000000000000'')',
                    'apikey_user_delete(''no such user'')', 'apikey_plan_delete(''no such plan'')',
                    'apikey_user_create(''messages'', plan_id => ''no such plan'')']) AS s(action);
-- A key that is not deleted cannot be restored.
SELECT replace(test.refusal_in_full(format('SELECT apikey_restore(%L)', :'live')), :'live', '(id)');
\pset format aligned
\pset tuples_only off
-- The keys that the user had can still be changed; none tells of the user.
SELECT name, status FROM apikey_update(:'old_key', '{"name": "changed", "user_id": "messages-gone"}');
SELECT code FROM apikey_verify(:'old_secret');
-- In one transaction too.
BEGIN;
SELECT count(*) FROM apikey_user_create('messages-gone');
SELECT status FROM apikey_create('k', 'messages-gone');
SELECT user_id FROM apikey_update(:'live', '{"user_id": "messages-gone"}');
SELECT count(*) FROM apikey_user_delete('messages-gone');
SELECT test.refusal($$SELECT apikey_create('k', 'messages-gone')$$);
ROLLBACK;
-- Fields of an object that cannot be set: what to do instead.
\pset format unaligned
SELECT a.attname AS field, test.refusal_in_full(format('SELECT %s', replace(o.call, 'FIELD', a.attname))) AS refusal
  FROM (VALUES (1, 'apikeys.key_objects'::regclass, format('apikey_update(%L, ''{"FIELD": ""}'')', :'live')),
               (2, 'apikeys.plan_objects', 'apikey_plan_update(''messages'', ''{"FIELD": ""}'')'),
               (3, 'apikeys.user_objects', 'apikey_user_update(''messages'', ''{"FIELD": ""}'')'),
               (4, 'apikeys.role_objects', 'apikey_role_update(''messages'', ''{"FIELD": ""}'')')) o (n, of, call)
  JOIN pg_attribute a ON a.attrelid = o.of AND a.attnum > 0 AND NOT a.attisdropped
 WHERE test.refusal_in_full(format('SELECT %s', replace(o.call, 'FIELD', a.attname))) ~ 'unknown field|cannot be set'
 ORDER BY o.n, a.attnum;
SELECT test.refusal_in_full(format('SELECT apikey_update(%L, ''{"digest": ""}'')', :'live'));
-- What cannot be is refused before the statement that would write it, which
-- therefore is no context of the error.
RESET ROLE;
CREATE FUNCTION test.context(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    context text;
BEGIN
    EXECUTE statement;
    RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
    RETURN substring(context FROM '(?:INSERT|UPDATE) [^\n]*');
END
$$;
SET ROLE regress_app;
SELECT s.action, test.refusal('SELECT ' || s.action), test.context('SELECT ' || s.action)
  FROM unnest(ARRAY['apikey_create(''k'', expires_at => ''2020-01-01'')', 'apikey_create(''k'', metadata => ''[]'')',
                    'apikey_plan_create(''x'', 5, ''fortnight'')', 'apikey_plan_create(''x'', -2)',
                    'apikey_plan_create(NULL)', 'apikey_plan_create(''x'', request_period => NULL)',
                    'apikey_plan_create(''x'', is_active => NULL)',
                    'apikey_plan_update(''messages'', ''{"request_period": "fortnight"}'')',
                    'apikey_user_create(NULL)', 'apikey_user_create('''')', 'apikey_user_create(''x'', email => ''x'')',
                    'apikey_user_update(''messages'', ''{"email": "x"}'')', 'apikey_role_create(NULL)',
                    'apikey_limit_set(NULL, 1, ''1 s'', plan_id => ''messages'')',
                    'apikey_limit_set(''l'', NULL, ''1 s'', plan_id => ''messages'')',
                    'apikey_limit_set(''l'', 1, NULL, plan_id => ''messages'')',
                    'apikey_limit_set(''l'', 1, ''1 s'', auto_apply => NULL, plan_id => ''messages'')',
                    'apikey_limit_set(''l'', 1, ''1 month'', plan_id => ''messages'')']) AS s(action);
\pset format aligned
-- Plain writes meet the same checks, whoever makes them.
RESET ROLE;
SELECT count(*) FROM apikey_role_create('messages');
SELECT count(*) FROM apikey_limit_set('messages', 1, '1 s', plan_id => 'messages');
SELECT count(*) FROM apikey_create('messages');
CREATE ROLE regress_writer;
GRANT pg_read_all_data, pg_write_all_data TO regress_writer;
SET ROLE regress_writer;
BEGIN;
UPDATE apikeys.plans SET max_requests = -1 WHERE id = 'messages' RETURNING max_requests;
UPDATE apikeys.roles SET permissions = '{a}' WHERE name = 'messages' RETURNING permissions;
UPDATE apikeys.limits SET amount = 2 WHERE name = 'messages' RETURNING burst;
UPDATE apikeys.users SET is_disabled = true WHERE id = 'messages' RETURNING is_disabled;
UPDATE apikeys.keys SET enabled = false, credits = 5, refill_amount = 5, refill_every = '1 day'
 WHERE name = 'messages' RETURNING enabled, refill_since IS NOT NULL AS refills;
ROLLBACK;
SELECT test.refusal($$UPDATE apikeys.plans SET request_period = 'fortnight' WHERE id = 'messages'$$);
SELECT test.refusal($$UPDATE apikeys.plans SET request_period = NULL WHERE id = 'messages'$$);
SELECT test.refusal($$UPDATE apikeys.roles SET permissions = '{a b}' WHERE name = 'messages'$$);
SELECT test.refusal($$UPDATE apikeys.limits SET period = '1 month' WHERE name = 'messages'$$);
SELECT test.refusal($$UPDATE apikeys.keys SET refill_amount = 5, refill_every = '1.5 seconds' WHERE name = 'messages'$$);
RESET ROLE;
REVOKE pg_read_all_data, pg_write_all_data FROM regress_writer;
DROP ROLE regress_writer;
SELECT test.refusal($$INSERT INTO apikeys.keys (name, digest, start, expires_at) VALUES ('k', sha256(''), 'ak_0000', '2020-01-01')$$);
-- A plain INSERT is free to, as a restore is.
RESET ROLE;
BEGIN;
INSERT INTO apikeys.keys (name, digest, start, user_id) VALUES ('k', sha256('messages'), 'ak_0000', 'messages-gone');
ROLLBACK;

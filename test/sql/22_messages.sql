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
\pset format aligned
-- A plain INSERT is free to, as a restore is.
RESET ROLE;
BEGIN;
INSERT INTO apikeys.keys (name, digest, start, user_id) VALUES ('k', sha256('messages'), 'ak_0000', 'messages-gone');
ROLLBACK;

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
-- A plain INSERT is free to, as a restore is.
RESET ROLE;
BEGIN;
INSERT INTO apikeys.keys (name, digest, start, user_id) VALUES ('k', sha256('messages'), 'ak_0000', 'messages-gone');
ROLLBACK;

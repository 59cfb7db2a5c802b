-- A request as PostgREST describes it: the key, the address, the role, the
-- headers, and who is calling.
\set SHOW_CONTEXT never
SET timezone = 'UTC';

CREATE ROLE regress_authenticator NOINHERIT;
CREATE ROLE regress_web_anon;
CREATE ROLE regress_web_tenant;
CREATE ROLE regress_web_other;
CREATE ROLE regress_web_super SUPERUSER;
GRANT regress_web_anon, regress_web_tenant, regress_web_super TO regress_authenticator;
SELECT apikey_grant('regress_web_anon', 'verifier');
SELECT apikey_grant('regress_web_tenant', 'application');
SELECT http_role FROM apikey_plan_create('Web', 100000, 'year', plan_id => 'web', http_role => 'regress_web_tenant');
SELECT id AS key_id, api_key FROM apikey_create('web', 'wendy', 'web', '{"a": 1}', permissions => '{docs.read}') \gset
SELECT id AS other_id, api_key AS other_key FROM apikey_create('other', 'otto') \gset
SELECT id AS small_id, api_key AS small_key FROM apikey_create('small', plan_id =>
    (SELECT id FROM apikey_plan_create('Small', 1, 'year'))) \gset
INSERT INTO apikeys.apis (id, http_role) VALUES ('second', 'regress_web_tenant');
SELECT api_key AS second_key FROM apikey_create('second', api_id => 'second') \gset

-- What PostgREST does before each request, in one transaction: the answer is
-- the refusal, or the role and the headers.
CREATE FUNCTION test.request(headers json, path text = '/notes', method text = 'GET') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
    seen text;
BEGIN
    PERFORM set_config('request.headers', headers::text, true),
            set_config('request.path', path, true),
            set_config('request.method', method, true),
            set_config('response.headers', '', true);
    SET LOCAL ROLE regress_web_anon;
    PERFORM apikey_authenticate();
    seen := format('%s %s', current_user,
                   regexp_replace(current_setting('response.headers'), ';([tw])=\d+', ';\1=N', 'g'));
    RESET ROLE;
    RETURN seen;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN regexp_replace(concat_ws(' ', SQLSTATE, message, detail), '("Retry-After":"|;[tw]=)\d+', '\1N', 'g');
END
$$;
GRANT EXECUTE ON FUNCTION test.request TO PUBLIC;

-- ----- The key -----
SET SESSION AUTHORIZATION regress_authenticator;
SELECT test.request(json_build_object('x-api-key', :'api_key'));
SELECT test.request(json_build_object('x-api-key', :'other_key'));
SELECT test.request(json_build_object('x-api-key', :'small_key'));
SELECT test.request(json_build_object('x-api-key', :'small_key'));
SELECT test.request('{}');
SELECT test.request('{"x-api-key": null}');
SELECT test.request('{"x-api-key": "junk"}');
SELECT test.request('{"x-api-key": ["a"]}');
SELECT test.request('[]');
SELECT test.request('"x-api-key"');
SELECT test.request(json_build_object('x-api-key', E' \t' || :'api_key' || E'\t '));
SELECT left(test.request(json_build_object('x-api-key', E' \t')), 50);
SELECT left(test.request(json_build_object('x-api-key', :'api_key' || E'\n')), 50);
SELECT left(test.request(json_build_object('x-api-key', replace(:'api_key', '_', '_ '))), 50);
SELECT test.request(json_build_object('x-api-key', 'ü' || :'api_key'));
SELECT left(test.request(json_build_object('x-api-key', repeat('a', 1000000))), 30);
SELECT test.request(json_build_object('x-api-key', 'ak_0000000000000000000000000000000000000000'));
-- A key of another api is not found; nor is it charged.
SELECT test.request(json_build_object('x-api-key', :'second_key'));
-- Not JSON, or no request at all: nothing is repeated, nothing passes.
BEGIN;
SET LOCAL request.headers = '{"x-api-key": "ak_secret';
SET LOCAL request.method = 'GET';
SET LOCAL ROLE regress_web_anon;
SELECT apikey_authenticate();
ROLLBACK;
BEGIN;
SET LOCAL ROLE regress_web_anon;
SELECT apikey_authenticate();
ROLLBACK;
-- What is no fault of the JSON is not blamed on it.
BEGIN;
SET LOCAL request.method = 'GET';
SELECT set_config('request.headers', repeat('[', 100000), true) IS NOT NULL AS is_set;
SET LOCAL ROLE regress_web_anon;
\set VERBOSITY sqlstate
SELECT apikey_authenticate();
\set VERBOSITY default
ROLLBACK;
-- A path that passes without a key, and one that only looks so.
SELECT test.request('{}', '/rpc/apikey_check');
SELECT left(test.request('{}', '/rpc/apikey_check/'), 30);
SELECT left(test.request('{}', ''), 30);
-- A role that may not verify.
BEGIN;
SET LOCAL ROLE regress_web_tenant;
SELECT apikey_authenticate();
ROLLBACK;
RESET SESSION AUTHORIZATION;

-- ----- Settings -----
SET apikeys.http_api = 'second';
SELECT test.request(json_build_object('x-api-key', :'second_key'));
SELECT left(test.request(json_build_object('x-api-key', :'api_key')), 50);
SET apikeys.http_api = '';
SELECT left(test.request(json_build_object('x-api-key', :'api_key')), 20);
RESET apikeys.http_api;
SET apikeys.http_header = 'X-My-Key';
SELECT left(test.request(json_build_object('x-api-key', :'api_key')), 50);
SELECT left(test.request(json_build_object('x-my-key', :'api_key')), 20);
RESET apikeys.http_header;
SET apikeys.http_header = 'x api key';
SET apikeys.http_header = '';
SET apikeys.trusted_proxies = '10.0.0.0/33';
SET apikeys.trusted_proxies = 'localhost';
SET ROLE regress_web_anon;
SET apikeys.trusted_proxies = '0.0.0.0/0';
SET apikeys.http_api = '';
SET apikeys.http_public_paths = '/notes';
RESET ROLE;

-- ----- Headers that are there already stay; rates; the older headers -----
SELECT name FROM apikey_limit_set('a "b" ü', 10, '1 min', 20, plan_id => 'web');
SET apikeys.legacy_rate_headers = on;
BEGIN;
SELECT set_config('request.headers', json_build_object('x-api-key', :'api_key')::text, true) IS NOT NULL,
       set_config('request.method', 'GET', true), set_config('request.path', '/', true),
       set_config('response.headers', '[{"X-First": "1"}]', true);
SELECT apikey_authenticate();
SELECT e.n, regexp_replace(e.h::text, ';t=\d+|;w=3\d{7}|(?<=Reset": ")\d+', '', 'g') AS header
  FROM json_array_elements(current_setting('response.headers')::json) WITH ORDINALITY AS e(h, n);
SELECT current_user;
COMMIT;
SELECT current_user;
RESET apikeys.legacy_rate_headers;
SELECT name FROM apikey_limit_delete('a "b" ü', plan_id => 'web');

-- ----- The client's address -----
UPDATE apikeys.keys SET allowed_ips = '{192.0.2.0/24, 2001:db8::/32}' WHERE id = :'key_id';
CREATE FUNCTION test.from_address(api_key text, forwarded text) RETURNS text
LANGUAGE sql AS $$
SELECT CASE WHEN r LIKE 'PGRST%' THEN substring(r FROM '"code":"([A-Z_]+)"') ELSE 'passes' END
  FROM test.request(json_strip_nulls(json_build_object('x-api-key', api_key, 'x-forwarded-for', forwarded))) r
$$;
CREATE TEMP TABLE forwarded (n int GENERATED ALWAYS AS IDENTITY, forwarded text);
INSERT INTO forwarded (forwarded) VALUES
    (NULL), (''), ('192.0.2.1'), ('192.0.2.1, 198.51.100.1'), ('198.51.100.1, 192.0.2.1'),
    ('192.0.2.1, 10.0.0.1'), ('198.51.100.1, 192.0.2.1, 10.0.0.1, 10.0.0.2'),
    ('192.0.2.1, 198.51.100.1, 10.0.0.1'), ('10.0.0.1, 10.0.0.2'), ('192.0.2.1,'), ('192.0.2.1, unknown'),
    ('unknown, 192.0.2.1'), ('192.0.2.1, unknown, 10.0.0.1'), ('192.0.2.1/24'), ('192.0.2.0/24, 10.0.0.1'),
    ('192.0.2.1:1234'), ('[2001:db8::1]:1234'), ('2001:db8::1'), ('[2001:db8::1'), ('2001:DB8::1'),
    ('::ffff:192.0.2.1'), ('  192.0.2.1  '), ('192.0.2'), ('192.0.2.1 192.0.2.1'),
    (repeat('1', 100000)), (repeat('192.0.2.1, ', 5000) || '10.0.0.1');
CREATE FUNCTION test.addresses(api_key text) RETURNS TABLE (forwarded text, outcome text)
LANGUAGE sql AS $$
SELECT left(f.forwarded, 60), test.from_address(api_key, f.forwarded) FROM forwarded f ORDER BY f.n
$$;
-- No proxy is trusted: whatever the client claims, no address is known.
SELECT outcome, count(*) FROM test.addresses(:'api_key') GROUP BY 1;
SET apikeys.trusted_proxies = '127.0.0.1, 10.0.0.0/8';
SELECT * FROM test.addresses(:'api_key');
RESET apikeys.trusted_proxies;
UPDATE apikeys.keys SET allowed_ips = NULL WHERE id = :'key_id';

-- ----- The role -----
-- Not one that the authenticator could not set, that is gone, or a superuser.
CREATE FUNCTION test.as_authenticator(api_key text) RETURNS text
LANGUAGE sql AS $$ SELECT test.request(json_build_object('x-api-key', api_key)) $$;
UPDATE apikeys.plans SET http_role = 'regress_web_other' WHERE id = 'web';
SET SESSION AUTHORIZATION regress_authenticator;
SELECT test.as_authenticator(:'api_key');
RESET SESSION AUTHORIZATION;
UPDATE apikeys.plans SET http_role = 'regress_web_tenant' WHERE id = 'web';
ALTER ROLE regress_web_tenant SUPERUSER;
SET SESSION AUTHORIZATION regress_authenticator;
SELECT test.as_authenticator(:'api_key');
RESET SESSION AUTHORIZATION;
ALTER ROLE regress_web_tenant NOSUPERUSER;
-- As in a restore to a server where the role is missing.
BEGIN;
INSERT INTO apikeys.plans (id, name, created_at, http_role) VALUES ('restored', 'Restored', '2020-01-01', 'regress_missing');
UPDATE apikeys.keys SET plan_id = 'restored' WHERE id = :'key_id';
SELECT test.as_authenticator(:'api_key');
ROLLBACK;
-- The api's role, if the plan names none; none keeps the role.
UPDATE apikeys.plans SET http_role = NULL WHERE id = 'web';
SELECT left(test.as_authenticator(:'api_key'), 16);
UPDATE apikeys.apis SET http_role = 'regress_web_tenant' WHERE id = 'default';
SELECT left(test.as_authenticator(:'api_key'), 18);
UPDATE apikeys.apis SET http_role = NULL WHERE id = 'default';
SELECT (apikey_plan_update('web', '{"http_role": "regress_web_tenant"}')).http_role;
-- Who may name one: only a member of it, whatever role the functions run as.
SELECT test.refusal($$UPDATE apikeys.plans SET http_role = 'regress_missing' WHERE id = 'web'$$);
SELECT test.refusal($$UPDATE apikeys.plans SET http_role = 'regress_web_super' WHERE id = 'web'$$);
SELECT test.refusal($$UPDATE apikeys.plans SET http_role = '' WHERE id = 'web'$$);
SELECT test.refusal($$UPDATE apikeys.plans SET http_role = 'none' WHERE id = 'web'$$);
SET ROLE regress_manager;
SELECT test.refusal($$SELECT apikey_plan_update('web', '{"http_role": "regress_web_other"}')$$);
SELECT test.refusal($$SELECT apikey_plan_create('Mine', http_role => 'regress_web_other')$$);
SELECT test.refusal($$SELECT apikeys_http.apikey_plan_create('Mine', http_role => 'regress_web_other')$$);
RESET ROLE;
GRANT regress_web_other TO regress_manager;
SET SESSION AUTHORIZATION regress_manager;
SELECT (apikey_plan_create('Mine', http_role => 'regress_web_other')).http_role;
RESET SESSION AUTHORIZATION;
-- What is not switched is not refused: other fields of such a plan.
REVOKE regress_web_other FROM regress_manager;
SET ROLE regress_manager;
SELECT (apikey_plan_update('web', '{"description": "For the web"}')).http_role;
RESET ROLE;
-- It does not work through a function that runs as its owner.
CREATE FUNCTION test.definer() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'SELECT apikey_authenticate()';
SELECT set_config('request.headers', json_build_object('x-api-key', :'api_key')::text, false) IS NOT NULL,
       set_config('request.method', 'GET', false), set_config('request.path', '/', false);
SELECT test.definer();
SELECT current_user = session_user AS unchanged;

-- ----- Who is calling -----
SELECT apikey_current_user(), apikey_current_key(), apikey_current();
BEGIN READ ONLY;
SELECT code FROM apikey_verify(:'api_key');
SELECT user_id, name, api_id, plan_id, permissions, metadata, expires_at, key_id = :'key_id' FROM apikey_current();
SELECT apikey_current_user(), apikey_current_permissions(), apikey_current_metadata(), apikey_current_key() = :'key_id';
-- A refusal changes nothing.
SELECT code FROM apikey_verify('junk');
SELECT apikey_current_user();
SAVEPOINT s;
SELECT code FROM apikey_verify(:'other_key');
SELECT apikey_current_user(), apikey_current_permissions(), apikey_current_metadata();
ROLLBACK TO s;
SELECT apikey_current_user(), apikey_current_metadata();
SELECT code FROM apikey_verify(:'other_key');
RELEASE s;
SELECT apikey_current_user();
SAVEPOINT s;
SAVEPOINT t;
SELECT code FROM apikey_verify(:'api_key');
RELEASE t;
SELECT apikey_current_user();
ROLLBACK TO s;
SELECT apikey_current_user();
COMMIT;
SELECT apikey_current_user();
-- Only in a savepoint; an error; a procedure that commits.
BEGIN;
SAVEPOINT s;
SELECT code FROM apikey_verify(:'api_key');
ROLLBACK TO s;
SELECT apikey_current_user(), apikey_current_key() IS NULL;
COMMIT;
BEGIN;
SELECT code FROM apikey_verify(:'api_key');
SELECT 1 / 0;
ROLLBACK;
SELECT apikey_current_user();
CREATE PROCEDURE test.commits(api_key text) LANGUAGE plpgsql AS $$
DECLARE
    before text;
BEGIN
    PERFORM apikey_verify(api_key);
    before := apikey_current_user();
    COMMIT;
    RAISE NOTICE 'before %, after %', before, apikey_current_user();
END
$$;
CALL test.commits(:'api_key');
-- Large metadata, which is stored out of line, outlives its row.
UPDATE apikeys.keys SET metadata = jsonb_build_object('big', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i))
 WHERE id = :'key_id';
BEGIN;
SELECT code FROM apikey_verify(:'api_key');
UPDATE apikeys.keys SET metadata = '{}', user_id = NULL WHERE id = :'key_id';
SELECT length(apikey_current_metadata() ->> 'big'), apikey_current_user();
SELECT code FROM apikey_verify(:'api_key');
SELECT apikey_current_metadata(), apikey_current_user();
ROLLBACK;
-- Many keys at once are nobody's call, and a setting is no key.
BEGIN;
SELECT code FROM apikey_verify_many(ARRAY[:'api_key']);
SELECT apikey_current_user();
SET LOCAL apikeys.current = 'wendy';
ROLLBACK;

-- ----- Row security -----
CREATE TABLE test.notes (owner text, body text);
INSERT INTO test.notes VALUES ('wendy', 'hers'), ('otto', 'his'), (NULL, 'nobody''s');
ALTER TABLE test.notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON test.notes USING (owner = apikey_current_user());
GRANT SELECT, INSERT ON test.notes TO regress_web_tenant;
BEGIN;
SELECT apikey_authenticate();
SELECT current_user;
SELECT * FROM test.notes;
SELECT test.refusal($$INSERT INTO test.notes VALUES ('otto', 'forged')$$);
COMMIT;
SET ROLE regress_web_tenant;
SELECT * FROM test.notes;
SELECT test.refusal($$SELECT * FROM apikey_verify('x')$$);
RESET ROLE;

-- ----- The check for gateways -----
CREATE FUNCTION test.check(told json, arguments text = '') RETURNS TABLE (status text, headers text, body text)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('request.headers', told::text, true), set_config('request.path', '/rpc/apikey_check', true),
            set_config('request.method', 'POST', true), set_config('response.headers', '', true), set_config('response.status', '', true);
    EXECUTE format('SELECT apikeys_http.apikey_check(%s)', arguments) INTO body;
    RETURN QUERY SELECT current_setting('response.status'),
        (SELECT string_agg(k, ' ') FROM json_array_elements(current_setting('response.headers')::json) h, json_object_keys(h) k),
        regexp_replace(body, '[0-9a-f]{8}-[-0-9a-f]{27}', '(id)');
END
$$;
SELECT * FROM test.check(json_build_object('x-api-key', :'api_key', 'x-original-uri', '/v1/docs?token=hidden', 'x-original-method', 'DELETE'));
SELECT * FROM test.check('{}');
SELECT * FROM test.check(json_build_object('x-api-key', :'small_key'));
SELECT * FROM test.check(json_build_object('x-api-key', :'small_key'), 'auth_request => true');
SELECT * FROM test.check(json_build_object('x-api-key', :'api_key'), $$'docs.write'$$);
SELECT status FROM test.check(json_build_object('x-api-key', :'second_key'), $$api_id => 'second'$$);
-- A rate's window is what was set, though its interval is no whole number of
-- nanoseconds; integers of the headers have at most 15 digits.
SELECT name FROM apikey_limit_set('seven', 7, '1 min', plan_id => 'web');
UPDATE apikeys.plans SET max_requests = 1000000000000000000 WHERE id = 'web';
BEGIN;
SELECT status FROM test.check(json_build_object('x-api-key', :'api_key'), 'cost => 7');
SELECT regexp_replace(h::text, '(quot[^,]*;[tw])=\d+', '\1=N') AS header
  FROM json_array_elements(current_setting('response.headers')::json) h WHERE h::text ~ 'RateLimit';
COMMIT;
SELECT name FROM apikey_limit_delete('seven', plan_id => 'web');
UPDATE apikeys.plans SET max_requests = 100000 WHERE id = 'web';
SELECT test.refusal($$SELECT test.check('{}', '''docs. OR''')$$);
SELECT test.refusal($$SELECT test.check('{}', 'cost => -1')$$);
SELECT test.refusal($$SELECT test.check('{}', 'cost => NULL')$$);
-- Quota and credits have one code, and two messages.
SELECT id AS paid_id, api_key AS paid_key FROM apikey_create('paid', credits => 1) \gset
SELECT * FROM test.check(json_build_object('x-api-key', :'paid_key'));
SELECT * FROM test.check(json_build_object('x-api-key', :'paid_key'));
SELECT test.request(json_build_object('x-api-key', :'paid_key'));
CALL test.until($$(SELECT count(*) > 0 FROM apikeys.requests WHERE endpoint LIKE '/v1/docs%')$$);
SELECT endpoint, method, code FROM apikeys.requests WHERE endpoint LIKE '/v1/docs%';

-- ----- The same for middleware, from SQL -----
CREATE FUNCTION test.answer(key text, permissions text = NULL) RETURNS TABLE (status int, headers text, body json, known boolean, user_id text)
LANGUAGE sql AS $$
SELECT a.status, regexp_replace(a.headers::text, '("Retry-After":"|;[tw]=)\d+', '\1N', 'g'),
       regexp_replace(a.body::text, '[0-9a-f]{8}-[-0-9a-f]{27}', '(id)')::json, a.key_id IS NOT NULL, a.user_id
  FROM apikey_verify_http(key, '/middleware', 'PUT', '192.0.2.7', permissions => permissions) a
$$;
BEGIN;
SELECT * FROM test.answer(:'api_key');
SELECT apikey_current_user();
COMMIT;
SELECT * FROM test.answer(:'small_key');
SELECT * FROM test.answer(:'api_key', 'docs.write');
SELECT * FROM test.answer(NULL);
SELECT status FROM apikey_verify_http(:'second_key');
SELECT status FROM apikey_verify_http(:'second_key', api_id => 'default');
SELECT test.refusal($$SELECT apikey_verify_http('x', cost => -1)$$);
SELECT test.refusal($$SELECT apikey_verify_http('x', cost => NULL)$$);
SELECT test.refusal($$SELECT apikey_verify_http('x', permissions => 'docs. OR')$$);
CALL test.until($$(SELECT count(*) = 3 FROM apikeys.requests WHERE endpoint = '/middleware')$$);
SELECT method, ip_address, code, cost FROM apikeys.requests WHERE endpoint = '/middleware' ORDER BY timestamp;

-- ----- Wrappers: one for each function, granted alike -----
SELECT p.proname AS not_over_http FROM pg_proc p
 WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'apikey\_%'
   AND NOT EXISTS (SELECT FROM pg_proc w WHERE w.pronamespace = 'apikeys_http'::regnamespace
                      AND w.proname = p.proname AND w.proargtypes = p.proargtypes AND w.prosecdef)
 ORDER BY p.proname COLLATE "C";
SELECT w.proname AS granted_otherwise, r.role
  FROM pg_proc w
  JOIN pg_proc p ON p.proname = w.proname AND p.pronamespace = 'public'::regnamespace
 CROSS JOIN unnest('{regress_verifier, regress_viewer, regress_manager, regress_stranger}'::text[]) AS r(role)
 WHERE w.pronamespace = 'apikeys_http'::regnamespace
   AND has_function_privilege(r.role, w.oid, 'EXECUTE') <> has_function_privilege(r.role, p.oid, 'EXECUTE');

DROP TABLE test.notes;
DROP FUNCTION test.request, test.from_address, test.addresses, test.as_authenticator, test.definer, test.check, test.answer;
DROP PROCEDURE test.commits;
UPDATE apikeys.plans SET http_role = NULL;
UPDATE apikeys.apis SET http_role = NULL;
DROP OWNED BY regress_web_anon, regress_web_tenant;
DROP ROLE regress_authenticator, regress_web_anon, regress_web_tenant, regress_web_other, regress_web_super;

-- Who may do what.
\set SHOW_CONTEXT never
SELECT p.proname AS function,
       has_function_privilege('regress_verifier', p.oid, 'EXECUTE') AS verifier,
       has_function_privilege('regress_viewer', p.oid, 'EXECUTE') AS viewer,
       has_function_privilege('regress_manager', p.oid, 'EXECUTE') AS manager,
       has_function_privilege('regress_stranger', p.oid, 'EXECUTE') AS stranger
  FROM pg_proc p
 WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'apikey\_%'
 ORDER BY p.proname COLLATE "C", p.oid;
-- Nobody is given a function of the schema "apikeys", a table or a view.
SELECT r.rolname, p.oid::regprocedure
  FROM pg_roles r, pg_proc p
 WHERE r.rolname LIKE 'regress\_%' AND p.pronamespace = 'apikeys'::regnamespace
   AND has_function_privilege(r.oid, p.oid, 'EXECUTE') AND NOT r.rolsuper;
SELECT r.rolname, c.oid::regclass
  FROM pg_roles r, pg_class c
 WHERE r.rolname LIKE 'regress\_%' AND c.relnamespace = 'apikeys'::regnamespace
   AND c.relkind IN ('r', 'p', 'v', 'S') AND NOT r.rolsuper
   AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER');

-- What is granted works with nothing else granted, and no more than that.
SELECT count(*) FROM apikey_plan_create('Grants', 100, plan_id => 'grants');
SELECT count(*) FROM apikey_user_create('gus', plan_id => 'grants');
SELECT count(*) FROM apikey_role_create('grants');
SELECT id, api_key FROM apikey_create('grants', 'gus') \gset
SELECT status FROM apikey_delete((SELECT id FROM apikey_create('to purge')));
SELECT reservation_id AS held FROM apikey_reserve(:'api_key', 2) \gset
CREATE TEMP TABLE attempts (n int GENERATED ALWAYS AS IDENTITY, statement text);
GRANT SELECT ON attempts TO PUBLIC;
INSERT INTO attempts (statement) VALUES
    (format('SELECT apikey_verify(%L)', :'api_key')),
    (format('SELECT apikey_reserve(%L, 1, ''1 second'')', :'api_key')),
    (format('SELECT apikey_settle(%L, 1)', :'held')),
    (format('SELECT apikey_whoami(%L)', :'api_key')),
    (format('SELECT apikey_ledger(%L)', :'id')),
    (format('SELECT apikey_credits(%L, ''set'', 5)', :'id')),
    ('SELECT apikey_user_credits(''gus'', ''set'', 5)'),
    (format('SELECT apikey_usage_adjust(%L, 1)', :'id')),
    (format('SELECT apikey_get(%L)', :'id')),
    ('SELECT apikey_list()'),
    ('SELECT apikey_list(''gus'', ''grants'', ''default'', ''{}'')'),
    ('SELECT apikey_count()'),
    (format('SELECT apikey_usage(%L)', :'id')),
    (format('SELECT apikey_requests(%L)', :'id')),
    (format('SELECT apikey_usage_series(%L)', :'id')),
    (format('SELECT apikey_usage_series(%L, interval ''1 hour'')', :'id')),
    ('SELECT apikey_plan_get(''grants'')'),
    ('SELECT apikey_plan_list()'),
    ('SELECT apikey_plan_usage(''grants'')'),
    ('SELECT apikey_user_get(''gus'')'),
    ('SELECT apikey_user_list()'),
    ('SELECT apikey_user_usage(''gus'')'),
    ('SELECT apikey_user_requests(''gus'')'),
    ('SELECT apikey_user_usage_series(''gus'')'),
    ('SELECT apikey_user_usage_series(''gus'', interval ''1 day'')'),
    ('SELECT apikey_create(''k'')'),
    (format('SELECT apikey_update(%L, ''{"name": "renamed", "plan_id": "grants", "api_id": "default", "roles": ["grants"]}'')', :'id')),
    (format('SELECT apikey_regenerate(%L, ''1 hour'')', :'id')),
    (format('SELECT apikey_delete(%L)', :'id')),
    ('SELECT apikey_plan_create(''p'')'),
    ('SELECT apikey_plan_update(''grants'', ''{"name": "renamed"}'')'),
    ('SELECT apikey_plan_delete(''grants'')'),
    ('SELECT apikey_user_create(''gil'', plan_id => ''grants'')'),
    ('SELECT apikey_user_update(''gus'', ''{"plan_id": "grants"}'')'),
    ('SELECT apikey_user_delete(''gus'')'),
    ('SELECT apikey_revoke(''gus'')'),
    ('SELECT apikey_erase_user(''gus'')'),
    ('SELECT apikey_role_list()'),
    ('SELECT apikey_role_create(''r'', ''{docs.*}'')'),
    ('SELECT apikey_role_update(''grants'', ''{"permissions": ["docs.read"]}'')'),
    ('SELECT apikey_role_delete(''grants'')'),
    ('SELECT apikey_purge(''0'')'),
    ('SELECT apikey_grant(''regress_stranger'', ''manager'')'),
    ('SELECT apikeys.in_purge()'),
    ('SELECT apikeys.in_subscription()'),
    ('SELECT apikeys.uuidv7()'),
    ('SELECT apikeys.check_plan(''grants'')'),
    ('SELECT * FROM apikeys.meter()'),
    ('SELECT * FROM apikeys.keys'),
    ('SELECT * FROM apikeys.key_objects'),
    ('SELECT * FROM apikeys.plans'),
    ('SELECT * FROM apikeys.users'),
    ('SELECT * FROM apikeys.roles'),
    ('SELECT apikeys.check_permissions(''{}'')'),
    ('SELECT apikeys.check_roles(''{}'')'),
    ('SELECT * FROM apikeys.apis'),
    ('SELECT * FROM apikeys.requests'),
    ('SELECT * FROM apikeys.requests_default'),
    ('SELECT * FROM apikeys.usage'),
    ('SELECT * FROM apikeys.rollups'),
    ('SELECT * FROM apikeys.rollup_totals'),
    ('SELECT * FROM apikeys.rollup_journal'),
    ('SELECT apikeys.usage_series(NULL, ''day'', NULL, NULL)'),
    ('SELECT * FROM apikeys.live_usage'),
    ('SELECT * FROM apikeys.stats'),
    ('SELECT * FROM apikeys.health'),
    ('SELECT * FROM apikeys.incarnations'),
    ('SELECT * FROM apikeys.ledger'),
    ('INSERT INTO apikeys.ledger SELECT * FROM apikeys.ledger'),
    ('SELECT * FROM apikeys.reservations'),
    ('SELECT * FROM apikeys.held_reservations()'),
    ('SELECT * FROM apikeys.reservation_marks'),
    ('SELECT * FROM apikeys.rate_marks'),
    (format('SELECT apikeys.adjust_count(%L, 1)', :'id')),
    (format('SELECT apikeys.balance(%L, ''key'', 1, NULL, NULL, NULL, NULL)', :'id')),
    (format('SELECT apikeys.credit_account(%L, ''key'', 1, NULL, NULL, NULL, NULL, true)', :'id')),
    ('SELECT apikeys.credits_after(''set'', 1, 1, 1)'),
    ('SELECT apikeys.is_refill(''1 day'', NULL)'),
    ('SELECT apikeys.refill_times(''1 day'', NULL, now(), now())'),
    ('UPDATE apikeys.users SET credits = 1'),
    ('UPDATE apikeys.keys SET enabled = true'),
    ('DELETE FROM apikeys.keys'),
    ('TRUNCATE apikeys.keys'),
    ('SELECT NULL::apikeys.verification');
-- Each attempt is undone, so that all meet the same state.
CREATE FUNCTION test.attempt(statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION
    WHEN SQLSTATE 'ZZ000' THEN RETURN 'yes';
    WHEN insufficient_privilege THEN RETURN '-';
    WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
CREATE TEMP TABLE outcomes (role name, n int, outcome text);
GRANT INSERT ON outcomes TO PUBLIC;
SET ROLE regress_verifier;
INSERT INTO outcomes SELECT current_user, n, test.attempt(statement) FROM attempts;
SET ROLE regress_viewer;
INSERT INTO outcomes SELECT current_user, n, test.attempt(statement) FROM attempts;
SET ROLE regress_manager;
INSERT INTO outcomes SELECT current_user, n, test.attempt(statement) FROM attempts;
SET ROLE regress_stranger;
INSERT INTO outcomes SELECT current_user, n, test.attempt(statement) FROM attempts;
RESET ROLE;
SELECT regexp_replace(replace(replace(replace(a.statement, :'api_key', '(secret)'), :'id', '(id)'), :'held', '(held)'), '^SELECT ', '') AS statement,
       max(o.outcome) FILTER (WHERE o.role = 'regress_verifier') AS verifier,
       max(o.outcome) FILTER (WHERE o.role = 'regress_viewer') AS viewer,
       max(o.outcome) FILTER (WHERE o.role = 'regress_manager') AS manager,
       max(o.outcome) FILTER (WHERE o.role = 'regress_stranger') AS stranger
  FROM attempts a JOIN outcomes o USING (n)
 GROUP BY a.n, a.statement
 ORDER BY a.n;
DROP FUNCTION test.attempt;

-- A caller's search_path, functions, operators and temporary tables lead
-- nobody astray.
CREATE SCHEMA regress_trap AUTHORIZATION regress_app;
SET ROLE regress_app;
CREATE FUNCTION regress_trap.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped as %', current_user; END $$;
CREATE FUNCTION regress_trap.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT regress_trap.trap()::int';
CREATE FUNCTION regress_trap.jsonb_typeof(jsonb) RETURNS text LANGUAGE sql AS 'SELECT regress_trap.trap()::text';
CREATE FUNCTION regress_trap.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.now() WHERE regress_trap.trap()';
CREATE FUNCTION regress_trap.op(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT regress_trap.trap()';
CREATE FUNCTION regress_trap.op(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT regress_trap.trap()';
CREATE FUNCTION regress_trap.op(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT regress_trap.trap()';
CREATE OPERATOR regress_trap.>= (LEFTARG = int, RIGHTARG = int, FUNCTION = regress_trap.op);
CREATE OPERATOR regress_trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_trap.op);
CREATE OPERATOR regress_trap.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = regress_trap.op);
CREATE TEMP TABLE keys (id uuid);
CREATE TEMP TABLE plans (id text);
SET search_path = regress_trap, pg_temp, pg_catalog, public;
SELECT count(*) FROM apikey_plan_create('Trap', 10, plan_id => 'trap');
SELECT count(*) FROM apikey_plan_update('trap', '{"name": "Trap 2"}');
SELECT count(*) FROM apikey_user_create('tim', email => 'tim@example.com', plan_id => 'trap');
SELECT count(*) FROM apikey_user_update('tim', '{"name": "Tim"}');
SELECT count(*) FROM apikey_role_create('trap', '{docs.*}');
SELECT count(*) FROM apikey_role_update('trap', '{"permissions": ["docs.read"]}');
SELECT count(*) >= 0 FROM apikey_role_list();
SELECT id, api_key FROM apikey_create('trap', 'tim', 'trap', roles => '{trap}') \gset
SELECT code FROM apikey_verify(:'api_key');
SELECT count(*) FROM apikey_update(:'id', '{"name": "trap 2", "permissions": ["a"], "roles": ["trap"]}');
SELECT count(*) FROM apikey_list('tim', 'trap', 'default', '{}');
SELECT count(*) FROM apikey_get(:'id');
SELECT apikey_count('tim');
SELECT current_usage FROM apikey_usage(:'id');
SELECT current_usage FROM apikey_plan_usage('trap');
SELECT count(*) FROM apikey_user_list('trap');
SELECT count(*) >= 0 FROM apikey_requests(:'id');
SELECT count(*) >= 0 FROM apikey_user_requests('tim');
SELECT count(*) > 0 FROM apikey_usage_series(:'id', 'month');
SELECT count(*) > 0 FROM apikey_user_usage_series('tim', interval '1 day');
SELECT apikey_credits(:'id', 'set', 5), apikey_credits(:'id', 'add', 2), apikey_credits(:'id', 'subtract', 1);
SELECT apikey_user_credits('tim', 'set', 5);
SELECT credits FROM apikey_get(:'id');
SELECT count(*) FROM apikey_update(:'id', '{"refill_amount": 5, "refill_every": "1 week", "refill_day": 1}');
SELECT count(*) FROM apikey_ledger(:'id');
SELECT current_usage FROM apikey_usage_adjust(:'id', 1, 'trap');
SELECT reservation_id FROM apikey_reserve(:'api_key', 2) \gset
SELECT current_usage FROM apikey_settle(:'reservation_id', 1);
SELECT count(*) FROM apikey_regenerate(:'id');
SELECT count(*) FROM apikey_delete(:'id');
SELECT apikey_revoke('tim', 'trap', 'default');
SELECT count(*) FROM apikey_user_delete('tim');
SELECT name FROM apikey_erase_user('tim');
SELECT count(*) FROM apikey_plan_delete('trap');
SELECT count(*) FROM apikey_role_delete('trap');
RESET search_path;
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA regress_trap CASCADE;
RESET client_min_messages;

-- apikey_grant: who cannot grant cannot use it, wrong names are refused.
SELECT test.refusal($$SELECT apikey_grant('no such role', 'viewer')$$);
SELECT test.refusal($$SELECT apikey_grant('public', 'viewer')$$);
SELECT test.refusal($$SELECT apikey_grant(NULL, 'viewer')$$);
SELECT test.refusal($$SELECT apikey_grant('regress_stranger', 'owner')$$);
SELECT test.refusal($$SELECT apikey_grant('regress_stranger', NULL)$$);
GRANT EXECUTE ON FUNCTION apikey_grant(text, text) TO regress_stranger;
SET ROLE regress_stranger;
SELECT test.refusal($$SELECT apikey_grant('regress_stranger', 'manager')$$);
RESET ROLE;
REVOKE EXECUTE ON FUNCTION apikey_grant(text, text) FROM regress_stranger;
SELECT count(*) FROM pg_proc p
 WHERE p.proname LIKE 'apikey\_%' AND has_function_privilege('regress_stranger', p.oid, 'EXECUTE');
-- A stranger's function of the same name is not handed out; odd role names.
CREATE SCHEMA regress_odd;
CREATE FUNCTION regress_odd.apikey_list() RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE EXECUTE ON FUNCTION regress_odd.apikey_list() FROM PUBLIC;
CREATE ROLE "regress_Odd ""one""";
SELECT apikey_grant('regress_Odd "one"', 'viewer');
SELECT has_function_privilege('regress_Odd "one"', 'regress_odd.apikey_list()', 'EXECUTE') AS stranger,
       has_function_privilege('regress_Odd "one"', 'apikey_count(text, text, text, jsonb, boolean)', 'EXECUTE') AS own;
DROP OWNED BY "regress_Odd ""one""";
DROP ROLE "regress_Odd ""one""";
SET client_min_messages = warning;
DROP SCHEMA regress_odd CASCADE;
RESET client_min_messages;
-- Taken back as the reference says, nothing of it is left.
CREATE ROLE regress_back;
SELECT apikey_grant('regress_back', s) FROM unnest('{application,verifier,viewer,manager}'::text[]) s;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public, apikeys_http FROM regress_back;
REVOKE USAGE ON SCHEMA apikeys, apikeys_http FROM regress_back;
DROP ROLE regress_back;

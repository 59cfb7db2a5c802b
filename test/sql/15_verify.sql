-- apikey_verify: every outcome, in the order in which they are decided.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('verify'), ('verify-other');
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Verification', 5, 'year', plan_id => 'verify');
SELECT count(*) FROM apikey_user_create('vera', name => 'Vera');
SELECT id, api_key FROM apikey_create('all', 'vera', 'verify', '{"a": 1}',
    api_id => 'verify', permissions => '{read}', allowed_ips => '{10.0.0.0/8}') \gset
-- A secret of the right form that never was a key's: its creation is undone.
BEGIN;
SELECT api_key AS unknown FROM apikey_create('undone') \gset
ROLLBACK;

SET ROLE regress_verifier;
\x on
SELECT valid, code, key_id = :'id' AS key_id, api_id, name, user_id, plan_id,
       plan_name, permissions, metadata, current_usage, "limit", remaining,
       reset_time > now() AS reset_time, period, retry_after, expires_at
  FROM apikey_verify(:'api_key', '/v1/chat', 'POST', '10.1.2.3', permissions => 'read');
\x off

-- One row, always; nothing is said of what is not known.
SELECT * FROM apikey_verify('nonsense');
SELECT valid, code, num_nonnulls(key_id, api_id, name, user_id, plan_id, metadata, current_usage) AS told
  FROM apikey_verify(:'unknown');

-- From the last outcome to the first: each call would also give all those
-- before it in this list.
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', ip_address => '10.1.2.3', permissions => 'read', cost => 4);
SELECT code, current_usage, "limit", remaining,
       retry_after BETWEEN reset_time - clock_timestamp() - interval '1 min' AND reset_time - now() AS retry_after
  FROM apikey_verify(:'api_key', ip_address => '10.1.2.3', permissions => 'read');
SELECT code, retry_after FROM apikey_verify(:'api_key', ip_address => '10.1.2.3', permissions => 'write');
SELECT code FROM apikey_verify(:'api_key', ip_address => '11.1.2.3', permissions => 'write');
SET ROLE regress_manager;
-- Not long ago: a sweep would mark it as deleted.
SELECT status FROM apikey_update(:'id', jsonb_build_object('expires_at', now() - interval '1 hour'));
SET ROLE regress_verifier;
SELECT code FROM apikey_verify(:'api_key', ip_address => '11.1.2.3', permissions => 'write');
SET ROLE regress_manager;
SELECT status FROM apikey_update(:'id', '{"enabled": false}');
SET ROLE regress_verifier;
SELECT code FROM apikey_verify(:'api_key', ip_address => '11.1.2.3', permissions => 'write');
SELECT code FROM apikey_verify(:'api_key', ip_address => '11.1.2.3', permissions => 'write', api_id => 'verify-other');
SELECT code FROM apikey_verify(left(:'api_key', -1), ip_address => '11.1.2.3', permissions => 'write', api_id => 'verify-other');
-- Denials consumed nothing.
RESET ROLE;
SELECT current_usage FROM apikey_usage(:'id');

-- A deleted key.
SET ROLE regress_app;
SELECT count(*) FROM apikey_update(:'id', '{"expires_at": null, "enabled": true, "plan_id": null}');
SELECT code FROM apikey_verify(:'api_key', ip_address => '10.0.0.1');
SELECT status FROM apikey_delete(:'id');
SELECT code FROM apikey_verify(:'api_key', ip_address => '10.0.0.1');

-- Switched off: the key, its user, its plan; or the user or plan is deleted.
SELECT id, api_key FROM apikey_create('off', 'vera', 'verify') \gset
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_update(:'id', '{"enabled": false}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_update(:'id', '{"enabled": true}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_user_update('vera', '{"is_disabled": true}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_user_update('vera', '{"is_disabled": false}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_plan_update('verify', '{"is_active": false}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_plan_update('verify', '{"is_active": true}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_user_delete('vera');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_user_create('vera');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_plan_delete('verify');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_plan_create('Verification', 5, 'year', plan_id => 'verify');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
-- Of the plans that may apply, only the one that does matters.
SELECT count(*) FROM apikey_plan_create('Passed over', is_active => false, plan_id => 'verify-off');
SELECT count(*) FROM apikey_user_update('vera', '{"plan_id": "verify-off"}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_update(:'id', '{"plan_id": null}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
-- A change holds at once in the transaction that makes it, and no more when
-- that is undone.
SELECT count(*) FROM apikey_update(:'id', '{"plan_id": "verify"}');
BEGIN;
SELECT count(*) FROM apikey_plan_update('verify', '{"is_active": false}');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
ROLLBACK;
SELECT code FROM apikey_verify(:'api_key', cost => 0);
BEGIN;
SELECT status FROM apikey_delete(:'id');
SELECT code FROM apikey_verify(:'api_key', cost => 0);
ROLLBACK;
SELECT code FROM apikey_verify(:'api_key', cost => 0);

-- Addresses.
SELECT id, api_key FROM apikey_create('networks', allowed_ips => '{192.0.2.0/24,2001:db8::/32,198.51.100.7}') \gset
SELECT a AS address, v.code
  FROM unnest('{192.0.2.0,192.0.2.255,192.0.3.0,198.51.100.7,198.51.100.8,2001:db8::1,2001:db9::1,::ffff:192.0.2.1,::ffff:192.0.3.1,::fffe:192.0.2.1,192.0.2.0/24,192.0.2.0/23,::ffff:192.0.2.0/120,::ffff:192.0.2.0/119}'::inet[])
       WITH ORDINALITY AS t(a, n),
       LATERAL apikey_verify(:'api_key', ip_address => a) v
 ORDER BY n;
SELECT code FROM apikey_verify(:'api_key');
SELECT count(*) FROM apikey_update(:'id', '{"allowed_ips": []}');
SELECT code FROM apikey_verify(:'api_key', ip_address => '192.0.2.1');
SELECT count(*) FROM apikey_update(:'id', '{"allowed_ips": ["::ffff:192.0.2.0/120"]}');
SELECT a AS address, v.code
  FROM unnest('{192.0.2.1,::ffff:192.0.2.1,::ffff:192.0.3.1,2001:db8::1}'::inet[])
       WITH ORDINALITY AS t(a, n),
       LATERAL apikey_verify(:'api_key', ip_address => a) v
 ORDER BY n;
SELECT count(*) FROM apikey_update(:'id', '{"allowed_ips": null}');
SELECT code FROM apikey_verify(:'api_key');

-- Permissions: a single name; 16_permissions has the expressions.
SELECT id, api_key FROM apikey_create('permissions', permissions => '{read,chat.write}') \gset
SELECT p AS permission, v.code
  FROM unnest('{read,chat.write,write,chat,READ,rea,readx}'::text[]) WITH ORDINALITY AS t(p, n),
       LATERAL apikey_verify(:'api_key', permissions => p) v
 ORDER BY n;
SELECT code FROM apikey_verify(:'api_key', permissions => NULL);

-- The api: asked for, it must be the key's.
SELECT id, api_key FROM apikey_create('api', api_id => 'verify') \gset
SELECT code FROM apikey_verify(:'api_key');
SELECT code FROM apikey_verify(:'api_key', api_id => 'verify');
SELECT code FROM apikey_verify(:'api_key', api_id => 'verify-other');
SELECT code FROM apikey_verify(:'api_key', api_id => 'no such api');
SELECT count(*) FROM apikey_update(:'id', '{"api_id": "verify-other"}');
SELECT code FROM apikey_verify(:'api_key', api_id => 'verify-other');

-- Costs: all or nothing, and 0 only looks.
SELECT count(*) FROM apikey_plan_create('Costs', 10, 'year', plan_id => 'costs');
SELECT id, api_key FROM apikey_create('costs', plan_id => 'costs') \gset
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 7);
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 4);
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 0);
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 3);
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 1);
SELECT current_usage, "limit", remaining FROM apikey_usage(:'id');
-- More than the limit never fits: waiting does not help.
SELECT code, retry_after IS NULL AS hopeless FROM apikey_verify(:'api_key', cost => 11);
SELECT code FROM apikey_verify(:'api_key', cost => 2147483648);

-- A transaction that may not write still meters, and so does one undone.
SELECT id, api_key FROM apikey_create('read only', plan_id => 'costs') \gset
BEGIN READ ONLY;
SELECT code, current_usage FROM apikey_verify(:'api_key', '/read', 'GET');
COMMIT;
BEGIN;
SELECT code, current_usage FROM apikey_verify(:'api_key');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT code, current_usage FROM apikey_verify(:'api_key');
ROLLBACK TO s;
COMMIT;
SELECT test.refusal(format('SELECT 1 / (current_usage - current_usage) FROM apikey_verify(%L)', :'api_key'));
SELECT current_usage FROM apikey_usage(:'id');

-- A planner may neither fold nor repeat it.
SELECT id, api_key FROM apikey_create('planner', plan_id => 'costs') \gset
PREPARE verify(text) AS SELECT code, current_usage FROM apikey_verify($1);
EXECUTE verify(:'api_key');
EXECUTE verify(:'api_key');
EXECUTE verify(:'api_key');
DEALLOCATE verify;
SELECT max(v.current_usage) FROM generate_series(1, 4) n, LATERAL (SELECT (apikey_verify(:'api_key', tags => ARRAY[n::text])).current_usage) v;

-- What is still to come is refused, never ignored.
SELECT test.refusal(format('SELECT apikey_verify(%L, on_abort => ''refund'')', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, charges => ''{"tokens": 5}'')', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, on_abort => ''sometimes'')', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, on_abort => NULL)', :'api_key'));
SELECT current_usage FROM apikey_usage(:'id');

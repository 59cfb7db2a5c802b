-- Expiry: given, taken from the plan, refused, restored, swept.
\set SHOW_CONTEXT never
-- A day has 24 hours.
SET timezone = 'UTC';
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('A month', plan_id => 'expiry-month', key_lifetime => '30 days');
SELECT count(*) FROM apikey_plan_create('A week', plan_id => 'expiry-week', key_lifetime => '7 days');
SELECT count(*) FROM apikey_plan_create('For ever', plan_id => 'expiry-ever');
SELECT count(*) FROM apikey_user_create('eva', plan_id => 'expiry-month');
RESET ROLE;
INSERT INTO apikeys.apis (id, default_plan_id) VALUES ('expiry', 'expiry-week');
SET ROLE regress_app;

-- The lifetime of the plan that applies.
BEGIN;
SELECT expires_at - now() AS lifetime FROM apikey_create('own plan', plan_id => 'expiry-week');
SELECT expires_at - now() AS lifetime FROM apikey_create('own plan first', 'eva', 'expiry-week');
SELECT expires_at - now() AS lifetime FROM apikey_create('the user''s', 'eva', api_id => 'expiry');
SELECT expires_at - now() AS lifetime FROM apikey_create('the api''s', api_id => 'expiry');
SELECT expires_at AS lifetime FROM apikey_create('no lifetime', 'eva', 'expiry-ever', api_id => 'expiry');
SELECT expires_at AS lifetime FROM apikey_create('no plan');
-- What is given goes first.
SELECT expires_at - now() AS lifetime FROM apikey_create('given', plan_id => 'expiry-week', expires_at => now() + interval '1 hour');
SELECT expires_at - now() AS lifetime FROM apikey_create('given, longer', plan_id => 'expiry-week', expires_at => now() + interval '100 days');
COMMIT;

-- A changed plan changes no key that is there.
SELECT id, expires_at FROM apikey_create('kept', plan_id => 'expiry-week') \gset
SELECT count(*) FROM apikey_plan_update('expiry-week', '{"key_lifetime": "1 day"}');
SELECT expires_at = :'expires_at' AS same FROM apikey_update(:'id', '{"plan_id": "expiry-month"}');
SELECT expires_at FROM apikey_update(:'id', '{"expires_at": null}');
SELECT expires_at FROM apikey_update(:'id', '{"name": "still for ever"}');

-- In the past: refused for a new key, also by plain SQL.
SELECT test.refusal($$SELECT apikey_create('k', expires_at => clock_timestamp() - interval '1 ms')$$);
RESET ROLE;
SELECT test.refusal($$INSERT INTO apikeys.keys (name, start, digest, expires_at) VALUES ('k', 'ak_0000', sha256('x'), now() - interval '1 hour')$$);
INSERT INTO apikeys.keys (name, start, digest, plan_id) VALUES ('by hand', 'ak_0000', sha256('by hand'), 'expiry-month')
    RETURNING expires_at - now() AS lifetime;
-- A restored row comes out as it went in, expired or without an expiry.
INSERT INTO apikeys.keys (name, start, digest, plan_id, expires_at, created_at, updated_at)
    VALUES ('restored 1', 'ak_0000', sha256('restored 1'), 'expiry-month', '2020-03-03 00:00+00', '2020-01-01 00:00+00', '2020-02-02 00:00+00'),
           ('restored 2', 'ak_0000', sha256('restored 2'), 'expiry-month', NULL, '2020-01-01 00:00+00', '2020-02-02 00:00+00');
SELECT name, expires_at = '2020-03-03 00:00+00' AS expires_at,
       created_at = '2020-01-01 00:00+00' AND updated_at = '2020-02-02 00:00+00' AS as_it_was
  FROM apikeys.keys WHERE name LIKE 'restored _' ORDER BY name;

-- Refused from the very moment, whatever the transaction's time is.
SET ROLE regress_app;
BEGIN;
SELECT id, api_key FROM apikey_create('moment', expires_at => now() + interval '3 s') \gset
SELECT code FROM apikey_verify(:'api_key');
DO $$ BEGIN WHILE clock_timestamp() <= now() + interval '3 s' LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
SELECT code FROM apikey_verify(:'api_key');
COMMIT;
SELECT status FROM apikey_get(:'id');
-- Expiry can be put off.
SELECT status FROM apikey_update(:'id', jsonb_build_object('expires_at', now() + interval '1 hour'));
SELECT code FROM apikey_verify(:'api_key');

-- The sweep deletes what expired long enough ago; the answer stays EXPIRED.
SELECT id AS long_ago, api_key AS long_ago_key FROM apikey_create('long ago') \gset
SELECT id AS lately, api_key AS lately_key FROM apikey_create('lately') \gset
SELECT count(*) FROM apikey_update(:'long_ago', jsonb_build_object('expires_at', now() - interval '3 hours'));
SELECT count(*) FROM apikey_update(:'lately', jsonb_build_object('expires_at', now() - interval '1 hour'));
RESET ROLE;
ALTER SYSTEM SET apikeys.sweep_interval = '1s';
ALTER SYSTEM SET apikeys.expired_key_grace = '2h';
SELECT pg_reload_conf();
SELECT code FROM apikey_verify(:'api_key');
CALL test.until(format('(SELECT deleted_at IS NOT NULL FROM apikeys.keys WHERE id = %L)', :'long_ago'));
SELECT name, status, deleted_at IS NOT NULL AS deleted
  FROM unnest(ARRAY[:'id', :'long_ago', :'lately']::uuid[]) WITH ORDINALITY AS t(i, n), LATERAL apikey_get(i)
 ORDER BY n;
SELECT code FROM apikey_verify(:'long_ago_key');
SELECT code FROM apikey_verify(:'lately_key');
ALTER SYSTEM RESET apikeys.sweep_interval;
ALTER SYSTEM RESET apikeys.expired_key_grace;
SELECT pg_reload_conf();
-- Deleted before it expired, it is not found.
SELECT status FROM apikey_delete(:'id');
SELECT code FROM apikey_verify(:'api_key');

-- A database in which everything is in use, for the tests that attack it; psql
-- runs it after CREATE EXTENSION. What is stored says "canary" (ids do not), so
-- that what leaks is seen. "handed_out" keeps what callers know: ids, secrets.

SET client_min_messages = warning;

CREATE TABLE handed_out (what text PRIMARY KEY, id uuid, secret text);
REVOKE ALL ON handed_out FROM PUBLIC;

SELECT FROM apikey_plan_create('canary plan', 1000, 'month', 'pro', 'canary',
    true, '{"note": "canary"}', '1 year', 100);
SELECT FROM apikey_plan_create('canary plan of minutes', 3, 'minute', 'minutes');
SELECT FROM apikey_plan_create('canary plan without keys', plan_id => 'empty');
SELECT FROM apikey_plan_create('canary plan that is gone', plan_id => 'gone');
SELECT FROM apikey_plan_delete('gone');
SELECT FROM apikey_role_create('reader', '{canary.read, docs.*}', 'canary');
SELECT FROM apikey_role_create('writer', '{canary.write}');
SELECT FROM apikey_user_create('acme', 'Canary', 'canary@example.com', 'pro',
    metadata => '{"note": "canary"}');
SELECT FROM apikey_user_create('mover', 'Canary', 'canary2@example.com', 'minutes', '2026-01-31 12:00+00');
SELECT FROM apikey_user_create('erased', 'Canary', 'canary3@example.com', 'pro');
INSERT INTO apikeys.apis (id, name, default_prefix, default_plan_id, metadata)
VALUES ('shop', 'Canary', 'shop', 'pro', '{"note": "canary"}');

INSERT INTO handed_out
SELECT 'of a user', k.id, k.api_key
  FROM apikey_create('canary key', 'acme', metadata => '{"note": "canary"}',
       permissions => '{canary.use}', roles => '{reader}', allowed_ips => '{10.0.0.0/8, fd00::/8}') k;
INSERT INTO handed_out
SELECT 'of a plan', k.id, k.api_key FROM apikey_create('canary key', plan_id => 'minutes', api_id => 'shop') k;
INSERT INTO handed_out
SELECT 'of a mover', k.id, k.api_key FROM apikey_create('canary key', 'mover', prefix => 'shop_x') k;
INSERT INTO handed_out
SELECT 'with credits', k.id, k.api_key
  FROM apikey_create('canary key', credits => 1000, refill_amount => 500, refill_every => '1 month', refill_day => 31) k;
INSERT INTO handed_out
SELECT 'unlimited', k.id, k.api_key FROM apikey_create('canary key') k;
INSERT INTO handed_out
SELECT 'deleted', k.id, k.api_key FROM apikey_create('canary key', 'acme') k;
INSERT INTO handed_out
SELECT 'disabled', k.id, k.api_key FROM apikey_create('canary key', enabled => false) k;
INSERT INTO handed_out
SELECT 'expired', k.id, k.api_key FROM apikey_create('canary key', expires_at => clock_timestamp() + interval '100 milliseconds') k;
INSERT INTO handed_out
SELECT 'erased', k.id, k.api_key FROM apikey_create('canary key', 'erased') k;
SELECT FROM handed_out h, apikey_delete(h.id) WHERE h.what = 'deleted';
SELECT FROM apikey_limit_set('rate', 1000, '1 minute', plan_id => 'pro');
SELECT FROM apikey_limit_set('tokens', 100, '1 hour', 200, false, user_id => 'acme');
SELECT FROM handed_out h, apikey_limit_set('of-key', 10, '1 second', 100, key_id => h.id) WHERE h.what = 'unlimited';
SELECT FROM apikey_user_credits('acme', 'set', 100000);

SELECT FROM generate_series(1, 5) n, handed_out h,
       apikey_verify(h.secret, '/canary/' || n::text, 'POST', '10.1.2.3', tags => '{canary}', cost => 1 + n % 2);
SELECT FROM handed_out h, apikey_verify(h.secret, '/canary', 'POST', '10.1.2.3', charges => '{"request_id": "request-1"}')
 WHERE h.what = 'unlimited';
INSERT INTO handed_out
SELECT 'reservation', r.reservation_id FROM handed_out h, apikey_reserve(h.secret, 5, '1 day', '/canary') r WHERE h.what = 'with credits';
INSERT INTO handed_out
SELECT 'settled', r.reservation_id FROM handed_out h, apikey_reserve(h.secret, 5, '1 day', '/canary') r WHERE h.what = 'with credits';
SELECT FROM handed_out h, apikey_settle(h.id, 2) WHERE h.what = 'settled';
SELECT FROM handed_out h, apikey_usage_adjust(h.id, 1, 'canary') WHERE h.what = 'of a user';
SELECT FROM handed_out h, apikey_regenerate(h.id, '1 day') k WHERE h.what = 'of a user';
SELECT FROM apikey_erase_user('erased');

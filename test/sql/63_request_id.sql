-- A request that names itself is charged once, however often it is retried.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Once', 10, 'year', 'once');
SELECT count(*) FROM apikey_limit_set('tokens', 100, '100 days', 50, false, plan_id => 'once');
SELECT id, api_key FROM apikey_create('once', plan_id => 'once') \gset
SELECT id AS other, api_key AS other_key FROM apikey_create('other', plan_id => 'once') \gset
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 3, charges => '{"request_id": "r1", "tokens": 7}');
SELECT code, current_usage, repeated, limits -> 1 ->> 'remaining' AS tokens FROM apikey_verify(:'api_key', cost => 3, charges => '{"request_id": "r1", "tokens": 7}');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 3, charges => '{"request_id": "r2"}');
-- Another key's is another request.
SELECT code, current_usage, repeated FROM apikey_verify(:'other_key', charges => '{"request_id": "r1"}');
-- What was refused is decided anew; what was charged passes when the limit is used up.
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 4, charges => '{"request_id": "r3"}');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 3, charges => '{"request_id": "r3"}');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 3, charges => '{"request_id": "r3"}');
SELECT code, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r4"}');
-- Only a request that would be let in.
SELECT status FROM apikey_update(:'id', '{"enabled": false}');
SELECT code, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r1"}');
SELECT status FROM apikey_update(:'id', '{"enabled": true}');
-- What is given back is not charged: the retry is.
SELECT current_usage FROM apikey_usage_adjust(:'id', NULL);
BEGIN;
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r5"}', on_abort => 'refund');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r5"}', on_abort => 'refund');
ROLLBACK;
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r5"}', on_abort => 'refund');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r5"}');
-- No cost, no mark.
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', cost => 0, charges => '{"request_id": "r6"}');
SELECT code, current_usage, repeated FROM apikey_verify(:'api_key', charges => '{"request_id": "r6"}');
RESET ROLE;
-- The history shows retries, at no cost; the marks are durable.
CALL test.until(format('(SELECT count(*) = 5 FROM apikeys.request_ids WHERE key_id = %L AND charged_at > ''-infinity'')', :'id'));
CALL test.until(format('(SELECT count(*) = 14 FROM apikeys.requests WHERE key_id = %L)', :'id'));
SELECT code, cost FROM apikeys.requests WHERE key_id = :'id' ORDER BY "timestamp";
-- What cannot be.
SET ROLE regress_app;
SELECT c AS charges, test.refusal(format('SELECT apikey_verify(%L, charges => %L)', :'api_key', c))
  FROM unnest(ARRAY['{"request_id": ""}', '{"request_id": 1}', '{"request_id": null}', '{"request_id": ["r"]}', '{"request_id": {"r": 1}}']) WITH ORDINALITY AS t (c, n)
 ORDER BY n;
SELECT test.refusal(format('SELECT apikey_verify(%L, charges => %L)', :'api_key', json_build_object('request_id', repeat('r', 256))));
SELECT current_usage, repeated FROM apikey_verify(:'api_key', charges => json_build_object('request_id', repeat('r', 255))::jsonb);
RESET ROLE;

-- The history of requests, as the worker writes it.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('History', 4, 'year', 'history');
SELECT count(*) FROM apikey_user_create('hal');
SELECT id, api_key FROM apikey_create('history', 'hal', 'history', permissions => '{read}') \gset
SELECT id AS other_id, api_key AS other_key FROM apikey_create('other', 'hal') \gset
SELECT clock_timestamp() AS since \gset
SELECT code FROM apikey_verify(:'api_key', '/v1/chat', 'POST', '192.0.2.1', 2, 'read', tags => '{a,"b c"}');
SELECT code FROM apikey_verify(:'api_key', '/v1/chat', 'GET', '2001:db8::1', permissions => 'write');
SELECT code FROM apikey_verify(:'api_key', cost => 3);
SELECT code FROM apikey_verify(:'api_key', E'/sn\u00f6/\u2603?q=''"\\', 'PATCH', '10.0.0.0/8', tags => '{}');
SELECT code FROM apikey_verify(:'other_key', '/other');
-- Not recorded: a look, and what belongs to no key.
SELECT code FROM apikey_verify(:'api_key', '/look', cost => 0);
SELECT code FROM apikey_verify('nonsense', '/nonsense');
SELECT code FROM apikey_verify(left(:'api_key', -6) || 'aaaaaa', '/checksum');
-- Recorded: what the caller undid.
BEGIN;
SELECT code FROM apikey_verify(:'api_key', '/undone');
ROLLBACK;
RESET ROLE;
CALL test.until(format('(SELECT count(*) >= 5 FROM apikeys.requests WHERE key_id = %L)', :'id'));
CALL test.until(format('(SELECT count(*) >= 1 FROM apikeys.requests WHERE key_id = %L)', :'other_id'));

SET ROLE regress_viewer;
SELECT endpoint, method, status, code, ip_address, cost, tags,
       key_id = :'id' AS key, "timestamp" BETWEEN :'since' AND clock_timestamp() AS timed
  FROM apikey_requests(:'id');
SELECT array_agg("timestamp") = array_agg("timestamp" ORDER BY "timestamp" DESC) AS newest_first FROM apikey_requests(:'id');

-- Pages.
SELECT endpoint FROM apikey_requests(:'id', 2);
SELECT min("timestamp") AS seen FROM apikey_requests(:'id', 2) \gset
SELECT method FROM apikey_requests(:'id', 2, :'seen');
SELECT count(*) FROM apikey_requests(:'id', before => :'since');
SELECT count(*) FROM apikey_requests('00000000-0000-7000-8000-000000000000');

-- Those of a user: of all its keys.
SELECT r.endpoint, r.method, r.key_id = :'other_id' AS other_key FROM apikey_user_requests('hal') r;
SELECT r.endpoint FROM apikey_user_requests('hal', 2) r;
SELECT count(*) FROM apikey_user_requests('hal', before => :'since');
SELECT count(*) FROM apikey_user_requests('nobody');

-- Pages are gathered from the last day, the last days, and all before.
RESET ROLE;
BEGIN;
INSERT INTO apikeys.requests (timestamp, key_id, status, code, endpoint, cost)
SELECT now() - past, :'id', 'allowed', 'VALID', past::text, 1
  FROM unnest('{20 hours, 30 hours, 7 days, 9 days, 100 days, 9000 days, -1 day}'::interval[]) past;
SELECT array_agg(r.endpoint) FROM apikey_requests(:'id', before => now() - interval '1 hour') r;
SELECT array_agg(r.endpoint) FROM apikey_requests(:'id', 3, before => now() - interval '1 hour') r;
SELECT array_agg(r.endpoint) FROM apikey_requests(:'id', before => now() - interval '8 days') r;
SELECT array_agg(r.endpoint) FROM apikey_requests(:'id', before => now() - interval '8999 days') r;
SELECT r.endpoint FROM apikey_requests(:'id', 1) r;
SELECT count(*) FROM apikey_requests(:'id', before => '4713-01-01 00:00+00 BC');
SELECT count(*) FROM apikey_requests(:'id', before => '-infinity');
SELECT array_agg(r.endpoint) FROM apikey_user_requests('hal', 3, before => now() - interval '1 hour') r;
SELECT count(*) = (SELECT count(*) FROM apikeys.requests r JOIN apikeys.keys k ON k.id = r.key_id WHERE k.user_id = 'hal')
  FROM apikey_user_requests('hal');
ROLLBACK;
-- Requests of one microsecond are in one page, so that the next leaves none out.
BEGIN;
INSERT INTO apikeys.requests (timestamp, key_id, status, code, endpoint, cost)
SELECT now() + make_interval(mins => n / 3), CASE n % 2 WHEN 0 THEN :'id' ELSE :'other_id' END::uuid,
       'allowed', 'VALID', n::text, 1
  FROM generate_series(0, 17) n;
SELECT array_agg(r.endpoint ORDER BY r.endpoint::int) FROM apikey_requests(:'id', 2) r;
SELECT array_agg(r.endpoint ORDER BY r.endpoint::int)
  FROM apikey_requests(:'id', 2, (SELECT min(seen.timestamp) FROM apikey_requests(:'id', 2) seen)) r;
SELECT array_agg(r.endpoint ORDER BY r.endpoint::int) FROM apikey_user_requests('hal', 2) r;
SELECT array_agg(r.endpoint ORDER BY r.endpoint::int) FROM apikey_user_requests('hal', 4) r;
ROLLBACK;
SET ROLE regress_viewer;

-- What is too long is cut, at a whole character.
SET ROLE regress_app;
SELECT id, api_key FROM apikey_create('long') \gset
SELECT code FROM apikey_verify(:'api_key', repeat('x', 5000), repeat('M', 100));
SELECT code FROM apikey_verify(:'api_key', 'x' || repeat('é', 5000));
SELECT code FROM apikey_verify(:'api_key', repeat('y', 10 * 1024 * 1024));
SELECT code FROM apikey_verify(:'api_key', tags => ARRAY[repeat('t', 1022)]);
-- Tags are not cut, since a cut one would be another.
SELECT test.refusal(format('SELECT apikey_verify(%L, tags => ARRAY[repeat(''t'', 1023)])', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, tags => array_fill(''t''::text, ARRAY[1000]))', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, tags => ''{a,NULL,b}'')', :'api_key'));
SELECT current_usage FROM apikey_usage(:'id');
RESET ROLE;
CALL test.until(format('(SELECT count(*) >= 4 FROM apikeys.requests WHERE key_id = %L)', :'id'));
SELECT left(endpoint, 2) AS starts, octet_length(endpoint) AS bytes, length(endpoint) AS characters,
       octet_length(method) AS method, octet_length(tags[1]) AS tag
  FROM apikeys.requests WHERE key_id = :'id' ORDER BY "timestamp";

-- A purged key's history is still there.
SELECT status FROM apikey_delete(:'other_id');
SELECT apikey_purge('0') > 0 AS purged;
SELECT endpoint, code FROM apikey_requests(:'other_id');

-- Nothing waits in the DEFAULT partition: dated ones are ready. (Not for
-- yesterday, of which there may be rows that another script has made up.)
SELECT count(*) FROM apikeys.requests_default WHERE "timestamp" >= date_trunc('day', now(), 'UTC');
SELECT count(*) >= 3 AS made_ahead FROM pg_inherits WHERE inhparent = 'apikeys.requests'::regclass;

-- When a key was last used, without saying that it was changed.
ALTER SYSTEM SET apikeys.last_used_interval = '1s';
SELECT pg_reload_conf();
SELECT id, api_key, updated_at FROM apikey_create('last used') \gset
SELECT code FROM apikey_verify(:'api_key');
CALL test.until(format('(SELECT last_used_at >= created_at FROM apikeys.keys WHERE id = %L)', :'id'));
SELECT updated_at = :'updated_at' AS not_changed FROM apikey_get(:'id');
ALTER SYSTEM RESET apikeys.last_used_interval;
SELECT pg_reload_conf();

-- The outcomes are counted, those of guessers too.
SELECT value AS malformed FROM apikeys.stats WHERE name ILIKE '%malformed%' \gset
SELECT code FROM apikey_verify('nonsense');
SELECT value - :malformed AS more FROM apikeys.stats WHERE name ILIKE '%malformed%';

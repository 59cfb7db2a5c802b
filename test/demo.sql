-- The main job of apikeys, to be read along; "./dev demo" runs it.

\set QUIET on
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE EXTENSION apikeys CASCADE;

\echo
\echo '== A plan: 5 requests a month =='
\echo
\set ECHO queries
SELECT id, name, max_requests, request_period
  FROM apikey_plan_create('Free', 5, 'month', plan_id => 'free');
\set ECHO none

\echo
\echo '== A key for alice: its secret is shown this once =='
\echo
\set ECHO queries
SELECT id, api_key, start, status
  FROM apikey_create('My first key', 'alice', 'free') \gset
\set ECHO none
\echo '     id:' :id
\echo 'api_key:' :api_key
\echo '  start:' :start '  (this and a digest are all that is stored)'

\echo
\echo '== Requests are verified until the quota refuses one =='
\echo
\set ECHO queries
SELECT n, v.valid, v.code, v.current_usage, v."limit", v.remaining
  FROM generate_series(1, 6) n,
       LATERAL apikey_verify(:'api_key', '/v1/chat/' || n, 'POST', '192.0.2.1') v;
\set ECHO none

\echo
\echo '== The plan is raised, then the key is regenerated: same key, new secret =='
\echo
\set ECHO queries
SELECT id, max_requests FROM apikey_plan_update('free', '{"max_requests": 10}');
SELECT api_key AS new_key FROM apikey_regenerate(:'id') \gset
\set ECHO none
\echo
\echo 'new_key:' :new_key
\echo
\set ECHO queries
SELECT 'the old secret' AS with, valid, code, remaining
  FROM apikey_verify(:'api_key', '/v1/chat', 'POST', '192.0.2.1')
UNION ALL
SELECT 'the new secret', valid, code, remaining
  FROM apikey_verify(:'new_key', '/v1/chat', 'POST', '192.0.2.1');
\set ECHO none

\echo
\echo '== A secret that was never issued, and one with a typing error =='
\echo
\set ECHO queries
SELECT valid, code FROM apikey_verify('ak_guessedguessedguessedguessedguessed');
SELECT valid, code FROM apikey_verify(overlay(:'new_key' placing '-' from 10));
\set ECHO none

\echo
\echo '== A key is switched off, on again, and revoked =='
\echo
\set ECHO queries
SELECT status FROM apikey_update(:'id', '{"enabled": false}');
SELECT valid, code FROM apikey_verify(:'new_key', '/v1/models', 'GET', '192.0.2.1');
SELECT status FROM apikey_update(:'id', '{"enabled": true}');
SELECT valid, code FROM apikey_verify(:'new_key', '/v1/models', 'GET', '192.0.2.1');
SELECT status FROM apikey_delete(:'id');
SELECT valid, code FROM apikey_verify(:'new_key', '/v1/models', 'GET', '192.0.2.1');
\set ECHO none

\echo
\echo '== Usage is live =='
\echo
\set ECHO queries
SELECT current_usage, "limit", remaining, period, reset_time
  FROM apikey_usage(:'id');
\set ECHO none

-- The worker writes the history within two apikeys.flush_intervals.
DO $$
BEGIN
    WHILE (SELECT count(*) < 9 FROM apikeys.requests) LOOP
        IF clock_timestamp() > now() + '1 minute' THEN
            RAISE EXCEPTION 'the history does not appear';
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

\echo
\echo '== Every request is in the history =='
\echo
\set ECHO queries
SELECT to_char(timestamp, 'HH24:MI:SS.MS') AS time, endpoint, method, status,
       code, ip_address
  FROM apikey_requests(:'id');
\set ECHO none

\echo
\echo '== Requests by hour =='
\echo
\echo 'Sample data: 11 hours of requests are made up here, to have something to'
\echo 'draw. The last hour holds the requests made above.'
\echo
INSERT INTO apikeys.requests (timestamp, key_id, endpoint, method, status, code, ip_address, cost)
SELECT date_trunc('hour', now()) - hour * interval '1 hour' + n * interval '1 minute',
       :'id', '/v1/chat', 'POST',
       CASE WHEN n <= allowed THEN 'allowed' ELSE 'denied' END,
       CASE WHEN n <= allowed THEN 'VALID' ELSE 'USAGE_EXCEEDED' END,
       '192.0.2.1', 1
  FROM unnest('{4,9,15,21,30,34,27,22,12,6,2}'::int[],
              '{0,0,0,1,4,8,3,0,0,0,0}'::int[])
       WITH ORDINALITY AS sample (allowed, denied, hour),
       LATERAL generate_series(1, allowed + denied) n;
\set ECHO queries
SELECT to_char(date_trunc('hour', timestamp), 'HH24:MI') AS hour,
       count(*) FILTER (WHERE status = 'allowed') AS allowed,
       count(*) FILTER (WHERE status = 'denied') AS denied,
       repeat('█', count(*) FILTER (WHERE status = 'allowed')::int)
       || repeat('░', count(*) FILTER (WHERE status = 'denied')::int)
           AS "requests (░ denied)"
  FROM apikeys.requests
 WHERE key_id = :'id'
 GROUP BY date_trunc('hour', timestamp)
 ORDER BY date_trunc('hour', timestamp);
\set ECHO none

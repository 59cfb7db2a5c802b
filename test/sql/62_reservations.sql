-- Reservations: hold now, charge later what was used.
\set SHOW_CONTEXT never
SET ROLE regress_app;
CREATE FUNCTION pg_temp.shown(key uuid) RETURNS text LANGUAGE sql AS $$
SELECT string_agg(format('%s %s', l ->> 'name', l ->> 'remaining'), ', ' ORDER BY n)
  FROM apikey_usage(key), jsonb_array_elements(limits) WITH ORDINALITY AS x (l, n)
$$;
SELECT count(*) FROM apikey_plan_create('Reserved', 100, 'year', 'reserved');
SELECT count(*) FROM apikey_limit_set('tokens', 80, '80 days', plan_id => 'reserved');
SELECT id, api_key FROM apikey_create('reserved', plan_id => 'reserved', credits => 60) \gset
SELECT valid, code, current_usage, remaining, credits, reservation_id, deadline - now() BETWEEN '9 minutes' AND '11 minutes' AS in_10_minutes
  FROM apikey_reserve(:'api_key', 50, endpoint => '/v1/chat', method => 'POST', ip_address => '192.0.2.1') \gset r_
SELECT :'r_valid' AS valid, :'r_code' AS code, :'r_current_usage' AS current_usage, :'r_remaining' AS remaining, :'r_credits' AS credits, :'r_in_10_minutes' AS in_10_minutes;
SELECT pg_temp.shown(:'id');
-- What is held is not there for others; what is refused holds nothing.
SELECT code, credits, reservation_id FROM apikey_reserve(:'api_key', 11);
SELECT code FROM apikey_verify(:'api_key', cost => 11);
RESET ROLE;
SELECT max_cost, name FROM apikeys.reservations WHERE key_id = :'id';
SET ROLE regress_app;
-- Settled: the rest is given back to every limit.
SELECT valid, code, name, current_usage, remaining, credits FROM apikey_settle(:'r_reservation_id', 20);
SELECT pg_temp.shown(:'id');
RESET ROLE;
SELECT count(*) FROM apikeys.reservations WHERE key_id = :'id';
-- Durable when it returns.
SELECT period, current_usage FROM apikeys.usage WHERE subject_id = :'id' ORDER BY 1;
SET ROLE regress_app;
-- All of it, or nothing.
SELECT reservation_id AS all FROM apikey_reserve(:'api_key', 10) \gset
SELECT current_usage FROM apikey_settle(:'all', 10);
SELECT reservation_id AS none FROM apikey_reserve(:'api_key', 10, '1 hour') \gset
SELECT current_usage FROM apikey_settle(:'none', 0);
-- Neither hangs on the transaction.
BEGIN;
SELECT reservation_id AS kept FROM apikey_reserve(:'api_key', 10) \gset
ROLLBACK;
SELECT current_usage FROM apikey_usage(:'id');
BEGIN;
SELECT current_usage FROM apikey_settle(:'kept', 4);
ROLLBACK;
SELECT pg_temp.shown(:'id');
-- READ ONLY transactions can.
BEGIN READ ONLY;
SELECT reservation_id AS kept FROM apikey_reserve(:'api_key', 5) \gset
SELECT current_usage FROM apikey_settle(:'kept', 1);
COMMIT;
-- It ends by itself at its deadline.
SELECT reservation_id AS late FROM apikey_reserve(:'api_key', 10, '1 millisecond') \gset
CALL test.until(format('(SELECT current_usage = 35 FROM apikey_usage(%L))', :'id'));
SELECT pg_temp.shown(:'id');
-- The history adds up to the usage.
RESET ROLE;
CALL test.until(format('(SELECT count(*) = 14 AND sum(cost) FILTER (WHERE status = ''allowed'') = 35 FROM apikeys.requests WHERE key_id = %L)', :'id'));
SELECT code, status, cost, endpoint, method, ip_address FROM apikeys.requests WHERE key_id = :'id' ORDER BY "timestamp";
-- So does the time series, in which a settlement is no request.
CALL test.until(format('(SELECT sum(requests) = 8 AND sum(cost) = 35 FROM apikeys.rollups WHERE step = ''day'' AND key_id = %L)', :'id'));
SELECT allowed, denied, cost FROM apikey_usage_series(:'id', 'year') ORDER BY bucket_start DESC LIMIT 1;
-- What was deleted meanwhile is settled all the same.
SET ROLE regress_app;
SELECT reservation_id AS orphan FROM apikey_reserve(:'api_key', 5) \gset
SELECT status FROM apikey_delete(:'id');
SELECT code, current_usage FROM apikey_settle(:'orphan', 2);

-- What is given back to a count that was reset meanwhile makes it no less than
-- nothing: else more would be admitted than the limit.
SELECT api_key, id FROM apikey_create('reset', plan_id => 'reserved') \gset
SELECT reservation_id AS held FROM apikey_reserve(:'api_key', 50) \gset
SELECT current_usage FROM apikey_usage_adjust(:'id', NULL, 'reset');
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 3);
SELECT code, current_usage, remaining FROM apikey_settle(:'held', 10);
SELECT code, current_usage, remaining FROM apikey_verify(:'api_key', cost => 20, charges => '{"tokens": 0}');

-- What cannot be.
SELECT api_key, id FROM apikey_create('bad', plan_id => 'reserved') \gset
SELECT reservation_id AS held FROM apikey_reserve(:'api_key', 5) \gset
SELECT replace(test.refusal(format('SELECT apikey_settle(%L, 1)', :'none')), :'none', 'settled') AS refusal;
-- The first was given back, the second may not have been.
SELECT replace(test.refusal(format('SELECT apikey_settle(%L, 1)', :'late')), :'late', 'late') AS refusal;
SELECT reservation_id AS late FROM apikey_reserve((SELECT api_key FROM apikey_create('late')), 5, '1 microsecond') \gset
SELECT replace(test.refusal(format('SELECT apikey_settle(%L, 1)', :'late')), :'late', 'late') AS refusal;
SELECT test.refusal('SELECT apikey_settle(''00000000-0000-7000-8000-000000000000'', 1)');
SELECT test.refusal(format('SELECT apikey_settle(%L, 6)', :'held'));
SELECT test.refusal(format('SELECT apikey_settle(%L, -1)', :'held'));
SELECT test.refusal(format('SELECT apikey_settle(%L, NULL)', :'held'));
SELECT test.refusal('SELECT apikey_settle(NULL, 1)');
SELECT a AS arguments, test.refusal(format('SELECT apikey_reserve(%L, %s)', :'api_key', a))
  FROM unnest(ARRAY['0', '-1', 'NULL', '2147483649', '1, NULL', '1, ''0''', '1, ''-1 second''', '1, ''7 days 1 second''', '1, ''1 month''',
                    '1, ''178000000 years''']) WITH ORDINALITY AS t (a, n)
 ORDER BY n;
SELECT code, reservation_id FROM apikey_reserve('nonsense', 5);
SELECT code, reservation_id FROM apikey_reserve(NULL, 5);
SELECT count(*) FROM generate_series(1, 7) n, apikey_limit_set('limit' || n, 100, '1 day', key_id => :'id');
SELECT test.refusal(format('SELECT apikey_reserve(%L, 1)', :'api_key'));
SELECT current_usage FROM apikey_usage(:'id');
SELECT current_usage FROM apikey_settle(:'held', 5);
RESET ROLE;
SELECT count(*) FROM apikeys.reservations WHERE key_id = :'id';
SELECT test.refusal('TRUNCATE apikeys.reservation_marks');

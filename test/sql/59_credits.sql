-- Credits: a balance of a key, or of a user and shared by the user's keys; what
-- grants, refills and takes them is in the ledger.
\set SHOW_CONTEXT never
SET ROLE regress_app;
CREATE FUNCTION pg_temp.shown(limits jsonb) RETURNS text LANGUAGE sql AS $$
SELECT string_agg(format('%s %s/%s%s', l ->> 'name', l ->> 'remaining', coalesce(l ->> 'limit', '-'),
                         CASE WHEN (l ->> 'refused')::boolean THEN ' refused' END), ', ' ORDER BY n)
  FROM jsonb_array_elements(limits) WITH ORDINALITY AS x (l, n)
$$;
SELECT id, api_key, credits FROM apikey_create('paid', credits => 10) \gset
SELECT :credits AS credits;
SELECT code, credits, retry_after FROM apikey_verify(:'api_key');
SELECT code, credits, pg_temp.shown(limits) FROM apikey_verify(:'api_key', cost => 4, charges => '{"quota": 1}');
SELECT code, credits, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"credits": 0}');
-- All or nothing, and nothing to wait for.
SELECT code, credits, current_usage, retry_after, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"credits": 6}');
SELECT code, credits, pg_temp.shown(limits) FROM apikey_verify(:'api_key', cost => 0, charges => '{}');
SELECT code, credits FROM apikey_verify(:'api_key', cost => 5);
SELECT code, credits FROM apikey_verify(:'api_key');
SELECT credits, current_usage, pg_temp.shown(limits) FROM apikey_usage(:'id');
SELECT credits, refill_amount, status FROM apikey_get(:'id');

-- Set, add, subtract; unlimited and back.
SELECT apikey_credits(:'id', 'add', 5);
SELECT code, credits FROM apikey_verify(:'api_key', cost => 3);
SELECT apikey_credits(:'id', 'subtract', 1);
SELECT apikey_credits(:'id', 'set', 7);
SELECT code, credits FROM apikey_verify(:'api_key', cost => 2);
SELECT apikey_credits(:'id', 'set', NULL);
SELECT code, credits, pg_temp.shown(limits) FROM apikey_verify(:'api_key', cost => 100, charges => '{"credits": 3}');
SELECT apikey_credits(:'id', 'set', 20);
SELECT code, credits FROM apikey_verify(:'api_key', cost => 2);
SELECT operation, amount, reason, actor = session_user AS by_me FROM apikey_ledger(:'id');
SELECT operation, amount FROM apikey_ledger(:'id', 2);
RESET ROLE;
-- The sum of the ledger less what was consumed is the balance.
CREATE FUNCTION pg_temp.audit(key uuid) RETURNS TABLE (balance bigint, is_sum boolean) LANGUAGE sql AS $$
SELECT apikeys.balance(k.id, 'key', k.credits, k.refill_amount, k.refill_every, k.refill_day, k.refill_since),
       apikeys.balance(k.id, 'key', k.credits, k.refill_amount, k.refill_every, k.refill_day, k.refill_since)
       = (SELECT sum(l.amount) FROM apikeys.ledger l WHERE l.subject_id = k.id AND l.kind = 'credits')
         - (SELECT u.current_usage FROM apikeys.live_usage u WHERE u.key_id = k.id AND u.period = 'credits')
  FROM apikeys.keys k WHERE k.id = audit.key
$$;
SELECT * FROM pg_temp.audit(:'id');
SELECT current_usage, "limit", remaining, reset_time, period_start FROM apikeys.live_usage WHERE key_id = :'id' AND period = 'credits';
-- A plain UPDATE is a grant like any other.
UPDATE apikeys.keys SET credits = credits + 100 WHERE id = :'id';
SELECT operation, amount FROM apikey_ledger(:'id', 1);
SELECT * FROM pg_temp.audit(:'id');
CALL test.until(format('(SELECT current_usage = 17 FROM apikeys.usage WHERE subject_id = %L AND period = ''credits'')', :'id'));
SELECT * FROM pg_temp.audit(:'id');
-- What is rolled back was not granted; what is deleted and restored keeps its balance.
BEGIN;
SELECT apikey_credits(:'id', 'add', 1000);
SELECT credits FROM apikey_verify(:'api_key', cost => 1);
ROLLBACK;
SELECT * FROM pg_temp.audit(:'id');
DELETE FROM apikeys.keys WHERE id = :'id';
SELECT replace(test.refusal(format('SELECT apikey_credits(%L, ''add'', 1)', :'id')), :'id', 'id') AS refusal;
SELECT credits FROM apikey_restore(:'id');
SELECT * FROM pg_temp.audit(:'id');
-- What was admitted before credits became unlimited may end after it.
SELECT reservation_id FROM apikey_reserve((SELECT api_key FROM apikey_regenerate(:'id')), 8) \gset
SELECT apikey_credits(:'id', 'set', NULL);
SELECT current_usage FROM apikey_settle(:'reservation_id', 3);
SELECT apikey_credits(:'id', 'set', 20);
SELECT * FROM pg_temp.audit(:'id');
-- It only grows.
SELECT test.refusal('UPDATE apikeys.ledger SET amount = 0');
SELECT test.refusal('DELETE FROM apikeys.ledger');
SELECT test.refusal('TRUNCATE apikeys.ledger');

-- Of a user, shared by the keys that have none of their own.
SET ROLE regress_app;
SELECT count(*) FROM apikey_user_create('credits');
SELECT api_key AS a_key FROM apikey_create('a', 'credits') \gset
SELECT api_key AS b_key FROM apikey_create('b', 'credits') \gset
SELECT api_key AS c_key FROM apikey_create('c', 'credits', credits => 2) \gset
SELECT code, credits FROM apikey_verify(:'a_key');
SELECT apikey_user_credits('credits', 'set', 5);
SELECT code, credits FROM apikey_verify(:'a_key', cost => 2);
SELECT code, credits FROM apikey_verify(:'b_key', cost => 2);
SELECT code, credits FROM apikey_verify(:'a_key', cost => 2);
SELECT code, credits FROM apikey_verify(:'c_key', cost => 2);
SELECT code, credits FROM apikey_verify(:'b_key');
SELECT credits, pg_temp.shown(limits) FROM apikey_user_usage('credits');
SELECT credits FROM apikey_user_get('credits');
-- Given back on abort.
SELECT apikey_user_credits('credits', 'add', 10);
BEGIN;
SELECT code, credits FROM apikey_verify(:'a_key', cost => 4, on_abort => 'refund');
ROLLBACK;
SELECT credits FROM apikey_user_get('credits');

-- Refills are a function of time.
RESET ROLE;
SELECT e AS every, d AS day, at, t.previous AT TIME ZONE 'UTC' AS previous, t.next AT TIME ZONE 'UTC' AS next
  FROM (VALUES (1, '1 month', NULL, '2024-02-10 12:00Z'), (2, '1 month', 31, '2024-02-10 12:00Z'),
               (3, '1 month', 31, '2024-02-29 00:00Z'), (4, '1 month', 31, '2023-02-28 00:00Z'),
               (5, '1 month', 31, '2023-02-27 23:59:59Z'), (6, '1 month', 31, '2024-03-30 00:00Z'),
               (7, '1 month', 30, '2024-02-29 00:00Z'), (8, '1 month', 15, '2024-12-20 00:00Z'),
               (9, '3 months', 31, '2024-05-01 00:00Z'), (10, '1 year', 29, '2024-05-01 00:00Z'),
               (11, '1 week', NULL, '2024-02-29 12:00Z'), (12, '7 days', 7, '2024-03-03 00:00Z'),
               (13, '1 week', 7, '2024-03-02 23:59Z'), (14, '2 weeks', 1, '2024-02-29 12:00Z'),
               (15, '1 day', NULL, '2024-03-10 12:00Z'), (16, '3 days', NULL, '2024-01-07 12:00Z'),
               (17, '6 hours', NULL, '2024-01-07 12:00Z'), (18, '1 day 1 hour', NULL, '2024-01-04 00:00Z'))
       AS c (n, e, d, at),
       LATERAL apikeys.refill_times(e::interval, d, '2024-01-02 03:04:05.678Z', at::timestamptz) t
 ORDER BY n;
-- Whatever the session's time zone.
BEGIN;
SET LOCAL timezone = 'America/New_York';
SELECT t.next AT TIME ZONE 'UTC' AS next FROM apikeys.refill_times('1 day', NULL, '2024-01-01', '2024-03-10 12:00Z') t;
SELECT t.next AT TIME ZONE 'UTC' AS next FROM apikeys.refill_times('1 month', 31, '2024-01-01', '2024-10-31 23:00Z') t;
COMMIT;

SET ROLE regress_app;
SELECT id, api_key FROM apikey_create('refilled', refill_amount => 5, refill_every => '1 second') \gset
SELECT credits FROM apikey_get(:'id');
SELECT code FROM apikey_verify(:'api_key', cost => 5);
-- Though nobody verifies, and once: not above the amount.
CALL test.until(format('(SELECT credits = 5 FROM apikey_get(%L))', :'id'));
SELECT code, credits FROM apikey_verify(:'api_key', cost => 2);
SELECT apikey_credits(:'id', 'set', 50);
RESET ROLE;
CALL test.until(format('(SELECT refilled_at IS NOT NULL FROM apikeys.usage WHERE subject_id = %L AND period = ''credits'')', :'id'));
SET ROLE regress_app;
SELECT code, credits FROM apikey_verify(:'api_key', cost => 46);
CALL test.until(format('(SELECT credits = 5 FROM apikey_get(%L))', :'id'));
SELECT code, credits FROM apikey_verify(:'api_key', cost => 6);
SELECT retry_after FROM apikey_verify(:'api_key', cost => 6);
SELECT refill_amount, refill_every, refill_day FROM apikey_update(:'id', '{"refill_amount": 7, "refill_every": "1 month", "refill_day": 31}');
RESET ROLE;
SELECT is_sum FROM pg_temp.audit(:'id');
SELECT DISTINCT operation FROM apikeys.ledger WHERE subject_id = :'id' ORDER BY 1;
SET ROLE regress_app;
SELECT refill_amount, refill_every FROM apikey_update(:'id', '{"refill_amount": null, "refill_every": null, "refill_day": null}');
SELECT refill_amount, refill_day FROM apikey_user_update('credits', '{"refill_amount": 7, "refill_every": "7 days", "refill_day": 1}');

-- What is due comes before other terms hold.
SELECT id AS due, api_key AS due_key FROM apikey_create('due', refill_amount => 5, refill_every => '1 second') \gset
SELECT code FROM apikey_verify(:'due_key', cost => 5);
CALL test.until(format('(SELECT credits = 5 FROM apikey_get(%L))', :'due'));
SELECT credits, refill_amount FROM apikey_update(:'due', '{"refill_amount": 9, "refill_every": "1 month"}');
SELECT operation, amount FROM apikey_user_ledger('credits');

-- What cannot be.
SELECT c AS call, test.refusal(format('SELECT apikey_credits(%L, %s)', :'id', c))
  FROM unnest(ARRAY['''set'', -1', '''add'', -1', '''add'', NULL', '''subtract'', NULL', 'NULL, 1', 'NULL, NULL', '''Set'', 1', '''double'', 1',
                    '''subtract'', 9223372036854775807', '''add'', 9223372036854775807', '''set'', 9223372036854775807']) WITH ORDINALITY AS t (c, n)
 ORDER BY n;
SELECT test.refusal('SELECT apikey_credits(NULL, ''set'', 1)');
SELECT test.refusal('SELECT apikey_credits(''00000000-0000-7000-8000-000000000000'', ''set'', 1)');
SELECT test.refusal('SELECT apikey_user_credits(''nobody'', ''set'', 1)');
SELECT test.refusal('SELECT apikey_user_credits(NULL, ''set'', 1)');
SELECT api_key AS free_key, id AS free FROM apikey_create('free') \gset
SELECT test.refusal(format('SELECT apikey_credits(%L, ''add'', 1)', :'free'));
SELECT c AS arguments, test.refusal(format('SELECT apikey_create(''bad'', %s)', c))
  FROM unnest(ARRAY['refill_amount => 1', 'refill_every => ''1 day''', 'refill_day => 1',
                    'refill_amount => 0, refill_every => ''1 day''', 'refill_amount => -1, refill_every => ''1 day''',
                    'refill_amount => 1, refill_every => ''0''', 'refill_amount => 1, refill_every => ''-1 day''',
                    'refill_amount => 1, refill_every => ''1 month 1 day''', 'refill_amount => 1, refill_every => ''500 ms''',
                    'refill_amount => 1, refill_every => ''1000000 days''', 'refill_amount => 1, refill_every => ''1201 months''',
                    'refill_amount => 1, refill_every => ''1 month'', refill_day => 32', 'refill_amount => 1, refill_every => ''1 month'', refill_day => 0',
                    'refill_amount => 1, refill_every => ''1 week'', refill_day => 8', 'refill_amount => 1, refill_every => ''1 day'', refill_day => 1',
                    'credits => 9223372036854775807']) WITH ORDINALITY AS t (c, n)
 ORDER BY n;
SELECT p AS patch, test.refusal(format('SELECT apikey_update(%L, %L)', :'free', p))
  FROM unnest(ARRAY['{"credits": 1}', '{"refill_day": 1}', '{"refill_amount": 1}', '{"refill_amount": 5, "refill_every": "1 month", "refill_day": 32}',
                    '{"refill_amount": "5"}', '{"refill_every": 5}']) WITH ORDINALITY AS t (p, n)
 ORDER BY n;
SELECT status FROM apikey_delete(:'free');
RESET ROLE;
SELECT test.refusal('UPDATE apikeys.keys SET refill_day = 32, refill_amount = 1, refill_every = ''1 month''');

SELECT e AS every, d AS day, test.refusal(format('SELECT apikeys.balance(%L, ''key'', 1, 1, %L, %L, %L)', :'id', e, d, s))
  FROM (VALUES (1, '0', NULL, 'today'), (2, '1 day', 8, 'today'), (3, NULL, NULL, 'today'), (4, '1 day', NULL, NULL)) AS c (n, e, d, s)
 ORDER BY n;

-- Counts are adjusted by hand.
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Adjusted', 100, 'year', 'adjusted');
SELECT count(*) FROM apikey_user_create('adjusted', plan_id => 'adjusted');
SELECT id, api_key FROM apikey_create('adjusted', 'adjusted') \gset
SELECT current_usage FROM apikey_verify(:'api_key', cost => 60);
SELECT current_usage, remaining FROM apikey_usage_adjust(:'id', -20, 'double booking');
SELECT current_usage, remaining FROM apikey_usage_adjust(:'id', 55);
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 6);
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 5);
-- Undone with the transaction, or the savepoint.
BEGIN;
SELECT current_usage FROM apikey_usage_adjust(:'id', -50, 'in a transaction');
SAVEPOINT s;
SELECT current_usage FROM apikey_usage_adjust(:'id', NULL, 'reset');
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 3);
ROLLBACK TO s;
SELECT current_usage FROM apikey_usage(:'id');
COMMIT;
BEGIN;
SELECT current_usage FROM apikey_usage_adjust(:'id', NULL);
ROLLBACK;
SELECT current_usage FROM apikey_usage(:'id');
SELECT current_usage FROM apikey_usage_adjust(:'id', NULL, 'reset');
-- What is acknowledged is durable already.
RESET ROLE;
SELECT current_usage, charged FROM apikeys.usage g JOIN apikeys.users u ON u.subject_id = g.subject_id WHERE u.id = 'adjusted';
SET ROLE regress_app;
SELECT test.refusal(format('SELECT apikey_usage_adjust(%L, -1)', :'id'));
SELECT test.refusal(format('SELECT apikey_usage_adjust(%L, 9223372036854775807) FROM apikey_usage_adjust(%1$L, 1)', :'id'));
SELECT test.refusal(format('SELECT apikey_usage_adjust(%L, 2305843009213693953)', :'id'));
SELECT test.refusal('SELECT apikey_usage_adjust(NULL, 1)');
SELECT test.refusal('SELECT apikey_usage_adjust(''00000000-0000-7000-8000-000000000000'', 1)');
SELECT current_usage FROM apikey_usage(:'id');
RESET ROLE;
SELECT l.operation, l.amount, l.period, l.period_start = date_trunc('year', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS this_year, l.reason, l.subject
  FROM apikeys.ledger l JOIN apikeys.users u ON u.subject_id = l.subject_id WHERE u.id = 'adjusted' ORDER BY l.id;

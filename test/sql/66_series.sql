-- Time series, from rollups.
\set SHOW_CONTEXT never
SET TIME ZONE 'UTC';
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Series', 4, 'year', 'series');
SELECT count(*) FROM apikey_user_create('series-sue');
SELECT count(*) FROM apikey_user_create('series-sid');
SELECT id, api_key FROM apikey_create('series', 'series-sue', 'series', permissions => '{read}') \gset
SELECT id AS other, api_key AS other_key FROM apikey_create('other', 'series-sue') \gset

-- What is verified comes into it: by outcome, with the cost of what was allowed.
SELECT code FROM apikey_verify(:'api_key', cost => 3);
SELECT code FROM apikey_verify(:'api_key', cost => 3);
SELECT code FROM apikey_verify(:'api_key');
SELECT code FROM apikey_verify(:'api_key', permissions => 'write', cost => 7);
SELECT code FROM apikey_verify(:'other_key', cost => 10);
-- Not counted, as not recorded: a look, and what belongs to no key.
SELECT code FROM apikey_verify(:'api_key', cost => 0);
SELECT code FROM apikey_verify('nonsense');
RESET ROLE;
CALL test.until(format('(SELECT sum(requests) = 10 FROM apikeys.rollups WHERE key_id IN (%L, %L))', :'id', :'other'));
SET ROLE regress_viewer;
SELECT allowed, denied, cost, outcomes FROM apikey_usage_series(:'id') WHERE outcomes <> '{}';
SELECT sum(allowed), sum(denied), sum(cost) FROM apikey_usage_series(:'id', 'hour', now() - interval '2 hours');
SELECT allowed, denied, cost, outcomes FROM apikey_user_usage_series('series-sue', 'year', now() - interval '1 hour') ORDER BY bucket_start DESC LIMIT 1;

-- Thirty days and today, whole days, none left out.
SELECT count(*), min(bucket_start) = date_trunc('day', now() - interval '720 hours') AS from_then,
       max(bucket_start) = date_trunc('day', now()) AS to_now,
       bool_and(bucket_end = bucket_start + interval '1 day') AS whole
  FROM apikey_usage_series(:'id') WHERE date_trunc('day', now()) <> now();

-- Rows as the worker writes them, of some days.
RESET ROLE;
INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
SELECT :'id', 'day', d, c, n, CASE c WHEN 'VALID' THEN n * 10 ELSE 0 END
  FROM (VALUES ('2023-12-31 00:00+00'::timestamptz, 'VALID', 1), ('2024-01-01 00:00+00', 'VALID', 2),
               ('2024-02-28 00:00+00', 'VALID', 3), ('2024-02-29 00:00+00', 'VALID', 4),
               ('2024-02-29 00:00+00', 'EXPIRED', 5), ('2024-03-01 00:00+00', 'RATE_LIMITED', 6),
               ('2024-03-03 00:00+00', 'VALID', 7), ('2024-03-04 00:00+00', 'DISABLED', 8),
               ('2024-03-10 00:00+00', 'VALID', 9)) t (d, c, n);
INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
VALUES (:'other', 'day', '2024-02-29 00:00+00', 'VALID', 100, 100);
SET ROLE regress_viewer;
SELECT * FROM apikey_usage_series(:'id', 'day', '2024-02-28 13:00+00', '2024-03-04 00:00+00');
SELECT * FROM apikey_usage_series(:'id', 'day', '2024-02-28 13:00+00', '2024-03-04 00:00:00.000001+00') ORDER BY 1 DESC LIMIT 1;
-- Weeks begin on Monday.
SELECT * FROM apikey_usage_series(:'id', 'week', '2024-02-29 13:00+00', '2024-03-12 00:00+00');
SELECT * FROM apikey_usage_series(:'id', 'month', '2023-12-31 23:59+00', '2024-04-01 00:00+00');
SELECT * FROM apikey_usage_series(:'id', 'year', '2023-06-01 00:00+00', '2024-06-01 00:00+00');
-- The bounds of a month, of 31 days and in a leap year.
SELECT bucket_start, bucket_end FROM apikey_usage_series(:'id', 'month', '2024-01-31 00:00+00', '2024-03-31 00:00+00');
-- One bucket holds both.
SELECT allowed, denied FROM apikey_usage_series(:'id', 'month', '2024-02-28 10:00+00', '2024-02-28 11:00+00');
-- In UTC, whatever the session's time zone is.
SET TIME ZONE 'America/New_York';
SELECT bucket_start AT TIME ZONE 'UTC' AS utc, allowed, denied FROM apikey_usage_series(:'id', 'day', '2024-03-10 00:00+00', '2024-03-12 00:00+00');
SELECT count(*), bool_and(bucket_end - bucket_start = '1 hour') AS hours
  FROM apikey_usage_series(:'id', 'hour', '2024-03-10 00:00+00', '2024-03-11 00:00+00');
SET TIME ZONE 'UTC';

-- Hours, those of some hours ago.
RESET ROLE;
SELECT date_trunc('hour', now()) - interval '5 hours' AS h \gset
INSERT INTO apikeys.rollups (key_id, step, start, code, requests, cost)
VALUES (:'other', 'hour', :'h', 'VALID', 5, 50), (:'other', 'hour', :'h'::timestamptz + interval '2 hours', 'NOT_KNOWN_YET', 1, 0);
SET ROLE regress_viewer;
SELECT bucket_start - :'h' AS "start", bucket_end - :'h' AS "end", allowed, denied, cost, outcomes
  FROM apikey_usage_series(:'other', 'hour', :'h'::timestamptz + interval '59 minutes', :'h'::timestamptz + interval '3 hours');
-- A step is an hour or made of days: they are kept apart.
SELECT sum(allowed) FROM apikey_usage_series(:'other', 'hour', '2024-02-29 00:00+00', '2024-03-01 00:00+00');

-- All keys of a user, a deleted one too, until it is purged.
SELECT bucket_start, allowed, denied, cost, outcomes FROM apikey_user_usage_series('series-sue', 'day', '2024-02-29 00:00+00', '2024-03-02 00:00+00');
RESET ROLE;
SELECT status FROM apikey_delete(:'other');
SET ROLE regress_viewer;
SELECT allowed FROM apikey_user_usage_series('series-sue', 'day', '2024-02-29 00:00+00', '2024-03-01 00:00+00');
SELECT allowed FROM apikey_usage_series(:'other', 'day', '2024-02-29 00:00+00', '2024-03-01 00:00+00');
RESET ROLE;
SELECT apikey_purge('0') > 0 AS purged;
SET ROLE regress_viewer;
SELECT allowed FROM apikey_user_usage_series('series-sue', 'day', '2024-02-29 00:00+00', '2024-03-01 00:00+00');
SELECT count(*) FROM apikey_usage_series(:'other');

-- None without requests, no row without a key.
SELECT * FROM apikey_user_usage_series('series-sid', 'month', '2024-02-29 00:00+00', '2024-03-02 00:00+00');
SELECT count(*) FROM apikey_user_usage_series('series-none');
SELECT count(*) FROM apikey_user_usage_series(NULL);
SELECT count(*) FROM apikey_usage_series('00000000-0000-7000-8000-000000000000');
SELECT count(*) FROM apikey_usage_series(NULL);

-- The step as an interval, or written like one, whatever the style.
SET intervalstyle = 'iso_8601';
SELECT s.step, b.bucket_start, b.bucket_end
  FROM unnest('{1 hour,60 minutes,1 day,24 hours,7 days,1 week,1 month,1 year,12 months," Week ",DAY}'::text[]) s (step),
       LATERAL apikey_usage_series(:'id', s.step, '2024-02-29 12:30+00', '2024-02-29 12:31+00') b;
SELECT s.step, b.bucket_start, b.bucket_end
  FROM unnest('{1 hour,1 day,24 hours,7 days,1 week,1 month,1 year}'::interval[]) s (step),
       LATERAL apikey_usage_series(:'id', s.step, '2024-02-29 12:30+00', '2024-02-29 12:31+00') b;
SELECT count(*) FROM apikey_user_usage_series('series-sue', interval '1 month', '2024-01-01 00:00+00', '2025-01-01 00:00+00');
SELECT count(*) FROM apikey_user_usage_series('series-sue', every => '1 week', "to" => '2025-01-01 00:00+00');
RESET intervalstyle;

-- Bad input.
SELECT s.step, test.refusal(format('SELECT apikey_usage_series(%L, %L)', :'id', s.step))
  FROM unnest('{minute,"",fortnight,2 days,30 days,0,-1 day,infinity,"1 day 1 hour","999999999999 years"}'::text[]) s (step);
SELECT test.refusal(format('SELECT apikey_usage_series(%L, NULL::text)', :'id'));
SELECT test.refusal(format('SELECT apikey_usage_series(%L, interval ''2 days'')', :'id'));
SELECT test.refusal(format('SELECT apikey_usage_series(%L, NULL::interval)', :'id'));
SELECT test.refusal(format('SELECT apikey_usage_series(%L, ''day'', %L, %L)', :'id', f, t))
  FROM (VALUES ('2024-01-02', '2024-01-02'), ('2024-01-02', '2024-01-01'), ('-infinity', NULL),
               (NULL, 'infinity'), ('2024-01-01', '2090-01-01'), ('4000-01-01 BC', '9999-01-01'),
               ('2999-01-01', NULL)) v (f, t);
SELECT test.refusal($$SELECT apikey_user_usage_series('series-none', 'day', '2024-01-02', '2024-01-01')$$);
-- The most, and one more.
SELECT s.step, (SELECT count(*) FROM apikey_usage_series(:'id', s.step, '2024-01-01 00:00+00', s.most)) AS most,
       test.refusal(format('SELECT apikey_usage_series(%L, %L, %L, %L)', :'id', s.step, '2024-01-01 00:00+00', s.most + interval '1 second')) AS more
  FROM (SELECT u, '2024-01-01 00:00+00'::timestamptz + 10000 * ('1 ' || u)::interval FROM unnest('{hour,day,week,month,year}'::text[]) u) s (step, most)
 WHERE s.step <> 'week';
RESET ROLE;

-- Not to be emptied.
SELECT test.refusal('TRUNCATE apikeys.rollups');
SELECT test.refusal('TRUNCATE apikeys.rollup_journal');
SELECT name, value >= 0 AS told FROM apikeys.stats WHERE name LIKE 'rollup%';
RESET TIME ZONE;

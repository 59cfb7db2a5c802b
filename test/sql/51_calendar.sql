-- The calendar: periods against a second computation of them, at the ends of
-- months, in leap years, across daylight saving time, at the ends of time.
\set SHOW_CONTEXT never
SET timezone = 'UTC';

-- ----- By example -----

CREATE FUNCTION test.period(unit text, anchor timestamptz, at timestamptz,
                            OUT period_start timestamptz, OUT period_end timestamptz)
LANGUAGE sql AS $$
SELECT apikeys.period_start(unit, anchor, at), apikeys.period_end(unit, anchor, at)
$$;
-- An anchor on the 31st, through a leap February and one that is not.
SELECT at, p.*
  FROM unnest('{2024-01-31 09:59:59.999999+00,2024-01-31 10:00+00,2024-02-29 09:59:59.999999+00,
                2024-02-29 10:00+00,2024-03-31 10:00+00,2024-04-30 10:00+00,
                2025-02-28 09:59:59.999999+00,2025-02-28 10:00+00,2025-03-01 00:00+00,2025-03-31 10:00+00,
                2023-12-31 10:00+00,2023-02-28 10:00+00}'::timestamptz[]) at,
       LATERAL test.period('month', '2024-01-31 10:00+00', at) p;
-- The 30th and 29th, before their anchor too.
SELECT a AS anchor, at, p.*
  FROM (VALUES ('2024-01-30 00:00+00', '2024-02-29 00:00+00'), ('2024-01-30 00:00+00', '2024-03-01 00:00+00'),
               ('2024-01-30 00:00+00', '2025-02-27 23:59+00'), ('2024-01-30 00:00+00', '2025-02-28 00:00+00'),
               ('2024-01-29 00:00+00', '2025-02-28 00:00+00'), ('2024-01-29 00:00+00', '2023-02-28 00:00+00'),
               ('2024-01-29 00:00+00', '2000-02-29 00:00+00'), ('2024-01-29 00:00+00', '1900-02-28 00:00+00')) v (a, at),
       LATERAL test.period('month', a::timestamptz, at::timestamptz) p;
-- A leap day, by month and by year: the 28th where there is no 29th, 2100 too.
SELECT u AS unit, at, p.*
  FROM (VALUES ('month', '2024-03-28 23:59+00'), ('month', '2024-03-29 00:00+00'), ('month', '2025-02-28 00:00+00'),
               ('year', '2024-02-28 23:59+00'), ('year', '2024-02-29 00:00+00'), ('year', '2025-02-27 23:59+00'),
               ('year', '2025-02-28 00:00+00'), ('year', '2028-02-28 12:00+00'), ('year', '2028-02-29 00:00+00'),
               ('year', '2100-02-28 00:00+00'), ('year', '2000-02-29 00:00+00'), ('year', '1900-02-28 00:00+00')) v (u, at),
       LATERAL test.period(u, '2024-02-29 00:00+00', at::timestamptz) p;
-- Weeks begin on Monday and know no years.
SELECT at, p.*, extract(isodow FROM p.period_start) AS day
  FROM unnest('{2020-12-31 12:00+00,2021-01-03 23:59:59.999999+00,2021-01-04 00:00+00,2024-12-30 00:00+00,
                2025-01-01 00:00+00,1999-12-31 23:59+00,2000-01-03 00:00+00,1969-12-31 12:00+00}'::timestamptz[]) at,
       LATERAL test.period('week', '-infinity', at) p;
SELECT at, p.*
  FROM unnest('{2024-12-31 12:00+00,2025-01-01 05:29:59+00,2025-01-01 05:30+00,2023-01-04 05:30+00}'::timestamptz[]) at,
       LATERAL test.period('week', '2024-12-25 05:30+00', at) p;

-- ----- Whatever zone the session is in -----

-- Around both switches of each zone, and a little in them.
CREATE TEMP TABLE moments AS
SELECT z.zone, s.switch + shift AS at
  FROM (VALUES ('America/New_York', '2024-03-10 07:00+00'), ('America/New_York', '2024-11-03 06:00+00'),
               ('Europe/Berlin', '2024-03-31 01:00+00'), ('Europe/Berlin', '2024-10-27 01:00+00'),
               ('Australia/Lord_Howe', '2024-04-06 15:00+00'), ('Australia/Lord_Howe', '2024-10-05 15:30+00'))
       AS s0 (zone, moment),
       LATERAL (SELECT zone) z, LATERAL (SELECT moment::timestamptz AS switch) s,
       unnest('{-1 day,-61 minutes,-31 minutes,-1 microsecond,0,1 microsecond,29 minutes,59 minutes,1 day}'::interval[]) shift;
-- They are switches indeed.
SELECT zone, at, (at - interval '1 microsecond') AT TIME ZONE zone AS before, at AT TIME ZONE zone AS after
  FROM moments
 WHERE (at AT TIME ZONE zone) - ((at - interval '1 microsecond') AT TIME ZONE zone) <> interval '1 microsecond'
 ORDER BY at;
CREATE FUNCTION test.periods_in(zone text) RETURNS TABLE (unit text, anchor timestamptz, at timestamptz,
                                                          period_start timestamptz, period_end timestamptz)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('timezone', periods_in.zone, true);
    RETURN QUERY
        SELECT u, a, m.at, apikeys.period_start(u, a, m.at), apikeys.period_end(u, a, m.at)
          FROM moments m, unnest('{minute,hour,day,week,month,year}'::text[]) u,
               unnest('{-infinity,2024-01-31 02:30+00,2024-03-31 01:00+00,2023-11-05 06:30+00}'::timestamptz[]) a;
END
$$;
SELECT z AS zone, count(*) AS periods, count(p.*) AS in_utc_too
  FROM unnest('{America/New_York,Europe/Berlin,Australia/Lord_Howe,Asia/Kathmandu,Pacific/Apia}'::text[]) z
 CROSS JOIN LATERAL test.periods_in(z) l
  LEFT JOIN test.periods_in('UTC') p USING (unit, anchor, at, period_start, period_end)
 GROUP BY z ORDER BY z;
-- A day has 24 hours there, a switch or not.
SELECT count(*) FROM test.periods_in('Europe/Berlin') p
 WHERE p.unit IN ('minute', 'hour', 'day', 'week')
   AND extract(epoch FROM p.period_end) - extract(epoch FROM p.period_start) <> extract(epoch FROM ('1 ' || p.unit)::interval);

-- A start given in local time is that moment, and is counted from in UTC: its
-- time of day in UTC stays, and its day is that of UTC.
SET ROLE regress_app;
SET timezone = 'America/New_York';
SELECT count(*) FROM apikey_plan_create('Calendar', 10, 'month', 'calendar');
SELECT count(*) FROM apikey_user_create('calendar-1', plan_id => 'calendar', custom_start => '2024-01-31 23:30');
SELECT count(*) FROM apikey_user_create('calendar-2', plan_id => 'calendar', custom_start => '2024-07-04 12:00 Europe/Berlin');
SELECT count(*) FROM apikey_user_create('calendar-3', plan_id => 'calendar', custom_start => '2024-04-07 02:00 Australia/Lord_Howe');
RESET timezone;
SELECT u.user_id, extract(day FROM u.period_start AT TIME ZONE 'UTC') AS day,
       (u.period_start AT TIME ZONE 'UTC')::time AS start, (u.reset_time AT TIME ZONE 'UTC')::time AS reset
  FROM unnest('{calendar-1,calendar-2,calendar-3}'::text[]) i, LATERAL apikey_user_usage(i) u ORDER BY 1;
RESET ROLE;
SET timezone = 'UTC';
SELECT at, p.* FROM unnest('{2024-03-01 04:30+00,2024-11-15 00:00+00}'::timestamptz[]) at,
       LATERAL test.period('month', '2024-01-31 23:30 America/New_York', at) p;

-- ----- The ends of time -----

SELECT u AS unit, at, test.refusal(format('SELECT * FROM test.period(%L, ''-infinity'', %L)', u, at)) AS refusal
  FROM unnest('{minute,hour,day,week,month,year}'::text[]) WITH ORDINALITY AS t (u, n),
       unnest('{infinity,-infinity,294276-12-31 23:59:59.999999+00,4714-11-24 00:00:00+00 BC}'::timestamptz[]) WITH ORDINALITY AS m (at, o)
 ORDER BY n, o;
SELECT test.refusal($$SELECT * FROM test.period('week', '2024-12-25 00:00+00', '4714-11-24 00:00:00+00 BC')$$);
-- Some steps before that all is well, with anchors at the very ends.
SELECT u AS unit, a AS anchor, at, p.period_start <= at AND at < p.period_end AS holds
  FROM (VALUES ('minute'), ('hour'), ('day'), ('week'), ('month'), ('year')) t (u),
       unnest('{294276-12-31 23:59:59.999999+00,4714-11-24 00:00:00+00 BC}'::timestamptz[]) a,
       unnest('{294274-06-30 00:00+00,4711-06-30 00:00+00 BC,2024-02-29 00:00+00}'::timestamptz[]) at,
       LATERAL test.period(u, a, at) p
 WHERE NOT (p.period_start <= at AND at < p.period_end);
SELECT test.refusal($$SELECT apikeys.period_start('fortnight', '-infinity', now())$$);
-- Such an anchor harms no verification.
SET ROLE regress_app;
SELECT count(*) FROM apikey_user_create('calendar-4', plan_id => 'calendar', custom_start => '294276-12-31 23:59:59.999999+00');
SELECT count(*) FROM apikey_user_create('calendar-5', plan_id => 'calendar', custom_start => '4714-11-24 00:00:00+00 BC');
SELECT v.code, v.current_usage, v.reset_time > now() AND v.reset_time <= now() + interval '31 days' AS soon
  FROM unnest('{calendar-4,calendar-5}'::text[]) u, LATERAL apikey_create('k', u) k, LATERAL apikey_verify(k.api_key) v;
RESET ROLE;

-- ----- By a second computation -----

-- Anchors like the ends of months, moments like the bounds that follow.
SELECT setseed(0.5);
CREATE TEMP TABLE triples AS
SELECT n, u AS unit, anchor,
       timestamp '1890-01-01' + floor(random() * 1e16) * interval '1 microsecond' AS at
  FROM generate_series(1, 8000) n,
       LATERAL (SELECT ('{minute,hour,day,week,month,year}'::text[])[1 + n % 6]) x (u),
       LATERAL (SELECT date_trunc('month', timestamp '1890-01-01' + floor(random() * 3800) * interval '1 month')
                       + CASE n / 6 % 3 WHEN 0 THEN - interval '1 day' * floor(random() * 3)
                                        WHEN 1 THEN interval '1 day' * floor(random() * 31)
                                        ELSE interval '1 microsecond' * floor(random() * 2678400e6) END) y (anchor);
-- Every third at a bound or next to it: an anchor's day in some other month.
UPDATE triples
   SET at = anchor + floor(random() * 4000 - 2000) * ('1 ' || unit)::interval
            + (floor(random() * 3) - 1) * interval '1 microsecond'
 WHERE n / 18 % 3 = 0;
-- In UTC, by PostgreSQL's own arithmetic of timestamps without time zone: the
-- last of some candidates that is not after the moment.
CREATE TEMP TABLE computed AS
SELECT t.*, c.n_th,
       t.anchor + c.n_th * ('1 ' || t.unit)::interval AS expected_start,
       t.anchor + (c.n_th + 1) * ('1 ' || t.unit)::interval AS expected_end,
       b.period_start AT TIME ZONE 'UTC' AS period_start, b.period_end AT TIME ZONE 'UTC' AS period_end
  FROM triples t,
       LATERAL (SELECT CASE unit
                         WHEN 'month' THEN (extract(year FROM at) - extract(year FROM anchor)) * 12
                                           + extract(month FROM at) - extract(month FROM anchor)
                         WHEN 'year' THEN extract(year FROM at) - extract(year FROM anchor)
                         ELSE div(extract(epoch FROM at) - extract(epoch FROM anchor), extract(epoch FROM ('1 ' || unit)::interval))
                       END) g (guess),
       LATERAL (SELECT max(i) AS n_th FROM generate_series(guess - 2, guess + 2) i
                 WHERE t.anchor + i::int * ('1 ' || t.unit)::interval <= t.at) c,
       LATERAL test.period(t.unit, t.anchor AT TIME ZONE 'UTC', t.at AT TIME ZONE 'UTC') b;
SELECT count(*), count(DISTINCT (unit, anchor, at)) > 7900 AS distinct_enough,
       count(*) FILTER (WHERE at = period_start) > 300 AS at_start,
       count(*) FILTER (WHERE at = period_end - interval '1 microsecond') > 300 AS at_end,
       count(*) FILTER (WHERE unit IN ('month', 'year') AND extract(day FROM period_start) <> extract(day FROM anchor)) > 50 AS shortened
  FROM computed;
-- What is wrong.
SELECT unit, anchor, at, n_th, period_start, expected_start, period_end, expected_end
  FROM computed c
 WHERE (c.period_start <= at AND at < c.period_end
        AND c.period_start = expected_start AND c.period_end = expected_end) IS NOT TRUE
 LIMIT 10;
-- Periods meet: none overlaps, nothing lies between.
SELECT unit, anchor, at
  FROM computed c,
       LATERAL (SELECT c.anchor AT TIME ZONE 'UTC', c.period_start AT TIME ZONE 'UTC', c.period_end AT TIME ZONE 'UTC') m (a, s, e)
 WHERE (apikeys.period_start(unit, a, e) = e AND apikeys.period_end(unit, a, e - interval '1 microsecond') = e
        AND apikeys.period_start(unit, a, s) = s AND apikeys.period_end(unit, a, s - interval '1 microsecond') = s) IS NOT TRUE
 LIMIT 10;
-- The calendar is date_trunc.
SELECT unit, at
  FROM triples t, LATERAL test.period(unit, '-infinity', t.at AT TIME ZONE 'UTC') b
 WHERE (b.period_start AT TIME ZONE 'UTC' = date_trunc(unit, at)
        AND b.period_end AT TIME ZONE 'UTC' = date_trunc(unit, at) + ('1 ' || unit)::interval) IS NOT TRUE
 LIMIT 10;

-- ----- Rates -----

-- A rate's period is a length, not a date: a day is 24 hours, wherever and
-- whenever; months, which are not, are refused.
SELECT apikeys.is_rate(1, '1 day', 1), apikeys.is_rate(1, '1 month', 1), apikeys.is_rate(1, '1 year', 1),
       apikeys.is_rate(1, '36525 days', 1), apikeys.is_rate(1, '36526 days', 1);
SET timezone = 'Australia/Lord_Howe';
SELECT count(*) FROM apikey_limit_set('daily', 2, '1 day', user_id => 'calendar-1');
SELECT count(*) FROM apikey_limit_set('hourly', 48, '24 hours', burst => 2, user_id => 'calendar-2');
SELECT u, round(extract(epoch FROM v.retry_after) / 360) * 0.1 AS hours
  FROM (VALUES ('calendar-1'), ('calendar-2')) t (u), LATERAL apikey_create('k', u) k,
       LATERAL (SELECT count((apikey_verify(k.api_key, k.id::text || n)).code) FROM generate_series(1, 2) n) used,
       LATERAL (SELECT * FROM apikey_verify(k.api_key, used.count::text)) v;
RESET timezone;
DROP FUNCTION test.period, test.periods_in;

-- Periods: the calendar in UTC, or counted from a user's custom_start.
\set SHOW_CONTEXT never
-- Whatever the session's time zone is.
SET timezone = 'America/Sao_Paulo';
SET ROLE regress_app;

-- The bounds follow from each other, and now is between them.
SELECT clock_timestamp() AS since \gset
SELECT p AS period, u.period = p AS same_period,
       u.period_start AT TIME ZONE 'UTC' = date_trunc(p, u.period_start AT TIME ZONE 'UTC') AS calendar,
       u.reset_time AT TIME ZONE 'UTC' = u.period_start AT TIME ZONE 'UTC' + ('1 ' || p)::interval AS one_period,
       u.period_start <= clock_timestamp() AND u.reset_time > :'since' AS is_now,
       u.subject
  FROM unnest('{minute,hour,day,week,month,year}'::text[]) WITH ORDINALITY AS t(p, n),
       LATERAL apikey_plan_create(p, 10, p, 'periods-' || p) pl,
       LATERAL apikey_create(p, plan_id => pl.id) k,
       LATERAL apikey_usage(k.id) u
 ORDER BY n;

-- Custom starts. The n-th period begins n units after the start, so that one of
-- the 31st falls on the last day of short months and comes back to the 31st.
RESET ROLE;
CREATE FUNCTION test.bounds(anchor timestamptz, unit text, at timestamptz,
                            OUT period_start timestamptz, OUT reset_time timestamptz)
LANGUAGE sql SET timezone = 'UTC' AS $$
SELECT max(b) FILTER (WHERE b <= at), min(b) FILTER (WHERE b > at)
  FROM generate_series(-12, 2) around,
       LATERAL (SELECT anchor + (floor(extract(epoch FROM at - anchor)
                    / extract(epoch FROM ('1 ' || unit)::interval)) + around)
                    * ('1 ' || unit)::interval) s(b)
$$;
-- The rule itself, by examples.
SELECT a AS anchor, b.period_start AT TIME ZONE 'UTC' AS period_start,
       b.reset_time AT TIME ZONE 'UTC' AS reset_time
  FROM (VALUES ('2024-01-31 10:00', 'month', '2024-02-29 09:59'),
               ('2024-01-31 10:00', 'month', '2024-02-29 10:00'),
               ('2024-01-31 10:00', 'month', '2024-04-01 00:00'),
               ('2024-02-29 00:00', 'year', '2025-02-28 12:00'),
               ('2024-02-29 00:00', 'year', '2028-02-29 12:00')) v(a, u, at),
       LATERAL test.bounds((a || '+00')::timestamptz, u, (at || '+00')::timestamptz) b;
SET ROLE regress_app;
CREATE TEMP TABLE anchors (n int GENERATED ALWAYS AS IDENTITY, custom_start timestamptz);
INSERT INTO anchors (custom_start) VALUES
    ('2024-01-31 10:00+00'), ('2024-02-29 00:00+00'), ('2023-12-30 23:59:59.999999+00'),
    ('2024-03-31 02:30+02'), ('2024-10-27 02:30+01'), ('1999-12-31 12:34:56+00'),
    (date_trunc('day', now()) + interval '40 days');
SELECT count(*) FROM anchors a, LATERAL apikey_user_create('periods-' || a.n, custom_start => a.custom_start);
SELECT a.n, p AS period,
       u.period_start <= clock_timestamp() AND u.reset_time > :'since' AS is_now,
       (u.period_start, u.reset_time) = (b.period_start, b.reset_time) AS as_expected
  FROM anchors a, unnest('{hour,day,week,month,year}'::text[]) WITH ORDINALITY AS t(p, m),
       LATERAL apikey_user_update('periods-' || a.n, jsonb_build_object('plan_id', 'periods-' || p)) us,
       LATERAL apikey_create('k', us.id) k,
       LATERAL apikey_usage(k.id) u,
       LATERAL test.bounds(a.custom_start, p, u.period_start) b
 ORDER BY a.n, t.m;

-- A key's own plan follows its user's periods too; the verification agrees.
SELECT id, api_key FROM apikey_create('own', 'periods-1', 'periods-month') \gset
SELECT u.subject, u.reset_time = v.reset_time AS same, v.current_usage,
       (u.reset_time AT TIME ZONE 'UTC')::time AS time_of_day
  FROM apikey_verify(:'api_key') v, apikey_usage(:'id') u;
-- Another start moves the bounds.
SELECT count(*) FROM apikey_user_update('periods-1', '{"custom_start": "2024-01-31T11:00:00Z"}');
SELECT (reset_time AT TIME ZONE 'UTC')::time FROM apikey_usage(:'id');
SELECT count(*) FROM apikey_user_update('periods-1', '{"custom_start": null}');
SELECT (reset_time AT TIME ZONE 'UTC')::time FROM apikey_usage(:'id');
RESET timezone;
RESET ROLE;
DROP FUNCTION test.bounds;

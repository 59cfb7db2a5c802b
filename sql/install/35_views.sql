-- What the meter holds, joined with what is durable.

CREATE VIEW apikeys.live_usage AS
WITH counts AS MATERIALIZED (
    SELECT * FROM apikeys.meter()
), subjects AS (
    -- Counts in memory are the newer ones.
    SELECT subject_id, subject, period, period_start, current_usage, charged
      FROM counts
    UNION ALL
    SELECT u.subject_id, u.subject, u.period, u.period_start, u.current_usage, u.charged
      FROM apikeys.usage u
     WHERE NOT EXISTS (SELECT FROM counts c
                        WHERE c.subject_id = u.subject_id
                          AND c.period = u.period
                          AND c.period_start = u.period_start)
)
SELECT s.subject, s.subject_id, k.id AS key_id,
       coalesce(o.id, k.user_id) AS user_id, p.id AS plan_id,
       s.period, s.period_start,
       apikeys.period_end(s.period, coalesce(o.custom_start, ku.custom_start, '-infinity'), s.period_start) AS reset_time,
       s.current_usage,
       CASE WHEN p.request_period = s.period THEN p.max_requests END AS "limit",
       CASE WHEN p.request_period = s.period
            THEN greatest(p.max_requests - s.charged, 0) END AS remaining
  FROM subjects s
  LEFT JOIN apikeys.users o ON s.subject = 'user' AND o.subject_id = s.subject_id
  LEFT JOIN apikeys.keys k ON s.subject = 'key' AND k.id = s.subject_id
  LEFT JOIN apikeys.users ku ON ku.id = k.user_id
  LEFT JOIN apikeys.apis a ON a.id = k.api_id
  LEFT JOIN apikeys.plans p ON p.id = CASE s.subject
            WHEN 'user' THEN o.plan_id
            ELSE coalesce(k.plan_id, a.default_plan_id) END;
COMMENT ON VIEW apikeys.live_usage IS 'Usage of every key or user by period, read from the meter where it is there';

CREATE VIEW apikeys.stats AS
SELECT s.name, s.value, s.description FROM apikeys.statistics() s;
COMMENT ON VIEW apikeys.stats IS 'Statistics of this database since the server''s start';

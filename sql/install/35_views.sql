-- What the meter holds, joined with what is durable.

CREATE VIEW apikeys.live_usage AS
WITH subjects AS (
    SELECT m.subject_id, m.subject, m.period, m.period_start FROM apikeys.meter() m
    UNION
    SELECT u.subject_id, u.subject, u.period, u.period_start FROM apikeys.usage u
)
SELECT s.subject, s.subject_id, k.id AS key_id,
       coalesce(o.id, k.user_id) AS user_id, p.id AS plan_id,
       s.period, s.period_start,
       apikeys.period_end(s.period, coalesce(o.custom_start, ku.custom_start, '-infinity'), s.period_start) AS reset_time,
       c.current_usage,
       CASE WHEN p.request_period = s.period THEN p.max_requests END AS "limit",
       CASE WHEN s.period = 'credits' AND coalesce(k.credits, o.credits) IS NOT NULL
            THEN greatest(0, apikeys.balance(k.id, 'key', k.credits, k.refill_amount, k.refill_every,
                                          k.refill_day, k.refill_since),
                          apikeys.balance(o.subject_id, 'user', o.credits, o.refill_amount, o.refill_every,
                                          o.refill_day, o.refill_since))
            WHEN p.request_period = s.period AND p.max_requests IS NOT NULL
            THEN greatest(p.max_requests - c.charged, 0) END AS remaining
  FROM subjects s
  LEFT JOIN apikeys.users o ON s.subject = 'user' AND o.subject_id = s.subject_id
  LEFT JOIN apikeys.keys k ON s.subject = 'key' AND k.id = s.subject_id
  LEFT JOIN apikeys.users ku ON ku.id = k.user_id
  LEFT JOIN apikeys.apis a ON a.id = k.api_id
  LEFT JOIN apikeys.plans p ON p.id = CASE s.subject
            WHEN 'user' THEN o.plan_id
            ELSE coalesce(k.plan_id, a.default_plan_id) END
 CROSS JOIN LATERAL apikeys.count_of(s.subject_id, s.subject, s.period, s.period_start,
            CASE WHEN p.request_period = s.period THEN p.max_requests END) c;
COMMENT ON VIEW apikeys.live_usage IS 'Usage of every key or user by period, read from the meter where it is there';

CREATE VIEW apikeys.stats AS
SELECT s.name, s.value, s.description FROM apikeys.statistics() s;
COMMENT ON VIEW apikeys.stats IS 'Statistics of this database since the server''s start';

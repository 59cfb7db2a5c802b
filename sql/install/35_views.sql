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
            -- A user's plan stands in for the api's, and counts for the user.
            ELSE coalesce(k.plan_id, CASE WHEN ku.plan_id IS NULL THEN a.default_plan_id END) END
 CROSS JOIN LATERAL apikeys.count_of(s.subject_id, s.subject, s.period, s.period_start,
            CASE WHEN p.request_period = s.period THEN p.max_requests END) c;
COMMENT ON VIEW apikeys.live_usage IS 'Usage of every key or user by period, read from the meter where it is there';
COMMENT ON COLUMN apikeys.live_usage.subject IS 'key, or user where the count is shared by keys of the user';
COMMENT ON COLUMN apikeys.live_usage.subject_id IS 'Who is metered: keys.id or users.subject_id';
COMMENT ON COLUMN apikeys.live_usage.key_id IS 'The key; NULL for a user''s count';
COMMENT ON COLUMN apikeys.live_usage.user_id IS 'The user, or the owner of the key';
COMMENT ON COLUMN apikeys.live_usage.plan_id IS 'The plan whose quota the count is held to; NULL if there is none';
COMMENT ON COLUMN apikeys.live_usage.period IS 'Unit of the period; credits is what was consumed of them, for ever';
COMMENT ON COLUMN apikeys.live_usage.period_start IS 'Start of the period; -infinity for credits';
COMMENT ON COLUMN apikeys.live_usage.reset_time IS 'When the next period begins';
COMMENT ON COLUMN apikeys.live_usage.current_usage IS 'Consumed in the period, as billed; of credits, in all';
COMMENT ON COLUMN apikeys.live_usage."limit" IS 'Quota of the period; NULL is unlimited, or another unit than the plan''s';
COMMENT ON COLUMN apikeys.live_usage.remaining IS 'What may still be consumed in the period, of credits the balance; NULL is unlimited, or another unit than the plan''s';

CREATE VIEW apikeys.stats AS
SELECT s.name, s.value, s.description FROM apikeys.statistics() s;
COMMENT ON VIEW apikeys.stats IS 'Statistics of this database since the server''s start';
COMMENT ON COLUMN apikeys.stats.name IS 'Name of the figure; one that ends in _ms is in milliseconds';
COMMENT ON COLUMN apikeys.stats.value IS 'The figure';
COMMENT ON COLUMN apikeys.stats.description IS 'What it says';

CREATE VIEW apikeys.health AS
SELECT w.pid AS worker_pid,
       a.query AS worker_activity,
       a.wait_event AS worker_wait_event,
       s.meter_open = 1 AS meter_open,
       make_interval(secs => s.flush_lag_ms / 1000.0) AS flush_lag,
       w.last_flush_at,
       s.flush_failures,
       w.last_failure_at,
       w.last_failure_code,
       w.last_failure_message,
       s.history_dropped,
       (s.history_chunks - s.history_chunks_free) * 8192 AS history_used,
       s.history_chunks * 8192 AS history_capacity,
       s.meter_used,
       s.meter_capacity,
       s.evictions,
       s.reservations_used,
       s.reservations_capacity,
       s.outcomes
  FROM (SELECT jsonb_object_agg(i.name, i.value) FILTER (WHERE i.name ~ '^[A-Z_]+$') AS outcomes,
               max(i.value) FILTER (WHERE i.name = 'meter_open') AS meter_open,
               max(i.value) FILTER (WHERE i.name = 'flush_lag_ms') AS flush_lag_ms,
               max(i.value) FILTER (WHERE i.name = 'flush_failures') AS flush_failures,
               max(i.value) FILTER (WHERE i.name = 'history_dropped') AS history_dropped,
               max(i.value) FILTER (WHERE i.name = 'history_chunks') AS history_chunks,
               max(i.value) FILTER (WHERE i.name = 'history_chunks_free') AS history_chunks_free,
               max(i.value) FILTER (WHERE i.name = 'meter_used') AS meter_used,
               max(i.value) FILTER (WHERE i.name = 'meter_capacity') AS meter_capacity,
               max(i.value) FILTER (WHERE i.name = 'evictions') AS evictions,
               max(i.value) FILTER (WHERE i.name = 'reservations_used') AS reservations_used,
               max(i.value) FILTER (WHERE i.name = 'reservations_capacity') AS reservations_capacity
          FROM apikeys.statistics() i) s
 CROSS JOIN apikeys.worker() w
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid;
COMMENT ON VIEW apikeys.health IS 'How this database''s worker and the shared memory are doing, in one row';
COMMENT ON COLUMN apikeys.health.worker_pid IS 'Process id of the worker; NULL: none is attached, as is normal while nobody verifies';
COMMENT ON COLUMN apikeys.health.worker_activity IS 'What it does, or did last';
COMMENT ON COLUMN apikeys.health.worker_wait_event IS 'What it waits for, as in pg_stat_activity';
COMMENT ON COLUMN apikeys.health.meter_open IS 'Whether verifications are admitted without waiting for a worker';
COMMENT ON COLUMN apikeys.health.flush_lag IS 'Age of the oldest change that is due and not durable';
COMMENT ON COLUMN apikeys.health.last_flush_at IS 'The last flush of counts that had something to write';
COMMENT ON COLUMN apikeys.health.flush_failures IS 'Transactions of the worker that failed and are tried again, since the server''s start';
COMMENT ON COLUMN apikeys.health.last_failure_at IS 'When the last of them failed; NULL: none, as are the next two';
COMMENT ON COLUMN apikeys.health.last_failure_code IS 'Its SQLSTATE';
COMMENT ON COLUMN apikeys.health.last_failure_message IS 'Its message, cut at 255 bytes; the rest is in the server log';
COMMENT ON COLUMN apikeys.health.history_dropped IS 'Records lost because the history buffer was full, since the server''s start';
COMMENT ON COLUMN apikeys.health.history_used IS 'Bytes of the history buffer in use, all databases; each that verifies keeps up to 64 kB';
COMMENT ON COLUMN apikeys.health.history_capacity IS 'Bytes of the history buffer';
COMMENT ON COLUMN apikeys.health.meter_used IS 'Entries that the meter holds, all databases';
COMMENT ON COLUMN apikeys.health.meter_capacity IS 'Entries that the meter can hold';
COMMENT ON COLUMN apikeys.health.evictions IS 'Entries evicted from the meter, all databases, since the server''s start';
COMMENT ON COLUMN apikeys.health.reservations_used IS 'Reservations that are held, all databases';
COMMENT ON COLUMN apikeys.health.reservations_capacity IS 'Reservations that can be held at once';
COMMENT ON COLUMN apikeys.health.outcomes IS 'Verifications by outcome, since the server''s start';

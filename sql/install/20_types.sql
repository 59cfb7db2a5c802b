-- Answers. Views serve as the types of the rows that functions return, so
-- that a DBA can query what a client gets.

CREATE VIEW apikeys.key_objects AS
SELECT k.id, k.api_id, k.name, k.user_id, k.plan_id,
       CASE WHEN k.deleted_at IS NOT NULL THEN 'deleted'
            WHEN NOT k.enabled OR k.fenced_at IS NOT NULL THEN 'disabled'
            WHEN k.expires_at <= statement_timestamp() THEN 'expired'
            ELSE 'active' END AS status,
       k.start, k.permissions, k.metadata, k.expires_at, k.created_at,
       k.updated_at, k.last_used_at, k.deleted_at, k.enabled, k.allowed_ips,
       k.regenerated_at, k.previous_expires_at, k.roles,
       apikeys.balance(k.id, 'key', k.credits, k.refill_amount, k.refill_every,
                       k.refill_day, k.refill_since) AS credits,
       k.refill_amount, k.refill_every, k.refill_day, k.fenced_at
  FROM apikeys.keys k;
COMMENT ON VIEW apikeys.key_objects IS 'Keys as the functions show them: with a status, without digests';
COMMENT ON COLUMN apikeys.key_objects.status IS 'deleted, disabled (also while it is fenced), expired or active: of the key alone, whatever its user and plan are';
COMMENT ON COLUMN apikeys.key_objects.credits IS 'What is left of the key''s own credits; below zero if more was deducted than was left; NULL is unlimited';

CREATE VIEW apikeys.plan_objects AS
SELECT p.id, p.name, p.description, p.max_requests, p.request_period,
       p.is_active, p.key_lifetime, p.max_keys_per_user, p.metadata,
       p.created_at, p.updated_at, p.deleted_at, p.http_role
  FROM apikeys.plans p;
COMMENT ON VIEW apikeys.plan_objects IS 'Plans as the functions show them';

CREATE VIEW apikeys.user_objects AS
SELECT u.id, u.name, u.email, u.plan_id, u.custom_start, u.is_disabled,
       u.metadata, u.created_at, u.updated_at, u.deleted_at, u.erased_at,
       apikeys.balance(u.subject_id, 'user', u.credits, u.refill_amount,
                       u.refill_every, u.refill_day, u.refill_since) AS credits,
       u.refill_amount, u.refill_every, u.refill_day
  FROM apikeys.users u;
COMMENT ON VIEW apikeys.user_objects IS 'Users as the functions show them';
COMMENT ON COLUMN apikeys.user_objects.credits IS 'What is left of the credits that the user''s keys share; below zero if more was deducted than was left; NULL is unlimited';

CREATE VIEW apikeys.role_objects AS
SELECT r.name, r.description, r.permissions, r.created_at, r.updated_at
  FROM apikeys.roles r;
COMMENT ON VIEW apikeys.role_objects IS 'Roles as the functions show them';

CREATE TYPE apikeys.issued_key AS (
    id uuid, api_key text, api_id text, name text, user_id text, plan_id text,
    status text, start text, permissions text[], metadata jsonb,
    expires_at timestamptz, created_at timestamptz, updated_at timestamptz,
    last_used_at timestamptz, deleted_at timestamptz, enabled boolean,
    allowed_ips cidr[], regenerated_at timestamptz,
    previous_expires_at timestamptz, roles text[], credits bigint,
    refill_amount bigint, refill_every interval, refill_day int,
    fenced_at timestamptz
);
COMMENT ON TYPE apikeys.issued_key IS 'A key object with its secret (api_key), which is shown this once';
COMMENT ON COLUMN apikeys.issued_key.api_key IS 'The secret; nothing stores it';

CREATE TYPE apikeys.http_answer AS (
    status int, headers json, body json, key_id uuid, user_id text
);
COMMENT ON TYPE apikeys.http_answer IS 'A decision as an HTTP server tells it';
COMMENT ON COLUMN apikeys.http_answer.status IS '200, 401, 403 or 429';
COMMENT ON COLUMN apikeys.http_answer.headers IS 'Headers that the answer should have, by name';
COMMENT ON COLUMN apikeys.http_answer.body IS 'Of a refusal: a problem (RFC 9457)';
COMMENT ON COLUMN apikeys.http_answer.key_id IS 'The key that is calling; NULL if refused';
COMMENT ON COLUMN apikeys.http_answer.user_id IS 'Its user';

CREATE TYPE apikeys.verification AS (
    valid boolean, code text, key_id uuid, api_id text, name text,
    user_id text, plan_id text, plan_name text, permissions text[],
    metadata jsonb, current_usage bigint, "limit" bigint, remaining bigint,
    reset_time timestamptz, period text, retry_after interval,
    expires_at timestamptz, limits jsonb, credits bigint, repeated boolean
);
COMMENT ON TYPE apikeys.verification IS 'The decision about one presented secret';
COMMENT ON COLUMN apikeys.verification.valid IS 'Whether the request may go on';
COMMENT ON COLUMN apikeys.verification.code IS 'VALID, or the first reason that holds: MALFORMED, NOT_FOUND, DISABLED, EXPIRED, FORBIDDEN, INSUFFICIENT_PERMISSIONS, RATE_LIMITED, USAGE_EXCEEDED';
COMMENT ON COLUMN apikeys.verification.key_id IS 'The key; NULL for MALFORMED and NOT_FOUND, as is all that is the key''s';
COMMENT ON COLUMN apikeys.verification.plan_id IS 'The plan that applies: the key''s, its user''s or its api''s; NULL if none does';
COMMENT ON COLUMN apikeys.verification.plan_name IS 'Name of that plan';
COMMENT ON COLUMN apikeys.verification.permissions IS 'What the key holds by itself, without its roles';
COMMENT ON COLUMN apikeys.verification.current_usage IS 'Consumed in the current period, this request included';
COMMENT ON COLUMN apikeys.verification."limit" IS 'Quota of the period; NULL is unlimited';
COMMENT ON COLUMN apikeys.verification.remaining IS 'What may still be consumed in the period; NULL is unlimited';
COMMENT ON COLUMN apikeys.verification.reset_time IS 'When the next period begins';
COMMENT ON COLUMN apikeys.verification.period IS 'Unit of the period: minute, hour, day, week, month or year';
COMMENT ON COLUMN apikeys.verification.retry_after IS 'How long to wait before the same request can succeed; NULL if waiting does not help';
COMMENT ON COLUMN apikeys.verification.limits IS 'Every limit that was applied: name, kind, limit, remaining, reset_time, refused; only where charges was given';
COMMENT ON COLUMN apikeys.verification.repeated IS 'Whether the request_id was charged before, so that nothing was charged now; NULL without one';
COMMENT ON COLUMN apikeys.verification.credits IS 'Credits that are left, of the key or else of its user; NULL is unlimited';

CREATE TYPE apikeys.reservation AS (
    valid boolean, code text, key_id uuid, api_id text, name text,
    user_id text, plan_id text, plan_name text, permissions text[],
    metadata jsonb, current_usage bigint, "limit" bigint, remaining bigint,
    reset_time timestamptz, period text, retry_after interval,
    expires_at timestamptz, limits jsonb, credits bigint, repeated boolean,
    reservation_id uuid, deadline timestamptz
);
COMMENT ON TYPE apikeys.reservation IS 'A verification, and what is to be settled if it is valid';
COMMENT ON COLUMN apikeys.reservation.reservation_id IS 'For apikey_settle; NULL if nothing is held';
COMMENT ON COLUMN apikeys.reservation.deadline IS 'When what is held is given back if it is not settled';

CREATE TYPE apikeys.usage_report AS (
    key_id uuid, user_id text, plan_id text, current_usage bigint,
    "limit" bigint, remaining bigint, reset_time timestamptz, period text,
    period_start timestamptz, subject text, limits jsonb, credits bigint
);
COMMENT ON TYPE apikeys.usage_report IS 'Live usage of the current period';
COMMENT ON COLUMN apikeys.usage_report.key_id IS 'The key; NULL in the report of a user';
COMMENT ON COLUMN apikeys.usage_report.user_id IS 'The user; NULL for a key without one';
COMMENT ON COLUMN apikeys.usage_report.current_usage IS 'Consumed in the current period';
COMMENT ON COLUMN apikeys.usage_report.period_start IS 'When the current period began';
COMMENT ON COLUMN apikeys.usage_report.subject IS 'key, or user where the figures are shared by all keys of the user';
COMMENT ON COLUMN apikeys.usage_report.limits IS 'Every limit: name, kind, limit, remaining, reset_time';
COMMENT ON COLUMN apikeys.usage_report.credits IS 'Credits that are left, of the key or else of its user; NULL is unlimited';

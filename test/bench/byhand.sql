-- What people write by hand: a table each for plans, keys, counters and
-- history, and a function.

SET client_min_messages = warning;
SET synchronous_commit = off;
CREATE SCHEMA byhand;

CREATE TABLE byhand.plans (
    id text PRIMARY KEY,
    name text NOT NULL,
    max_requests bigint,
    request_period text NOT NULL
);
INSERT INTO byhand.plans VALUES ('bench', 'Bench', 1000000000, 'month');

CREATE TABLE byhand.keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    digest bytea NOT NULL UNIQUE,
    name text NOT NULL,
    user_id text,
    plan_id text REFERENCES byhand.plans,
    enabled boolean NOT NULL DEFAULT true,
    expires_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO byhand.keys (digest, name, user_id, plan_id)
SELECT sha256(k.secret::bytea), k.next, 'user ' || k.n, 'bench' FROM bench.keys k;

CREATE TABLE byhand.usage (
    key_id uuid NOT NULL REFERENCES byhand.keys,
    period_start timestamptz NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (key_id, period_start)
);

CREATE TABLE byhand.requests (
    "timestamp" timestamptz NOT NULL DEFAULT now(),
    key_id uuid NOT NULL,
    endpoint text,
    method text,
    status text NOT NULL,
    code text NOT NULL,
    ip_address inet
);
CREATE INDEX ON byhand.requests (key_id, "timestamp");

CREATE FUNCTION byhand.verify(key text, endpoint text, method text,
    OUT valid boolean, OUT code text, OUT key_id uuid, OUT name text,
    OUT user_id text, OUT plan_id text, OUT metadata jsonb,
    OUT current_usage bigint, OUT "limit" bigint)
LANGUAGE plpgsql
AS $$
DECLARE
    found_key record;
    period timestamptz;
BEGIN
    valid := false;
    SELECT k.*, p.max_requests, p.request_period
      INTO found_key
      FROM byhand.keys k LEFT JOIN byhand.plans p ON p.id = k.plan_id
     WHERE k.digest = public.digest(verify.key, 'sha256');
    IF NOT FOUND THEN
        code := 'NOT_FOUND';
        RETURN;
    END IF;
    key_id := found_key.id;
    name := found_key.name;
    user_id := found_key.user_id;
    plan_id := found_key.plan_id;
    metadata := found_key.metadata;
    "limit" := found_key.max_requests;

    IF NOT found_key.enabled THEN
        code := 'DISABLED';
    ELSIF found_key.expires_at <= now() THEN
        code := 'EXPIRED';
    ELSE
        period := date_trunc(found_key.request_period, now());
        INSERT INTO byhand.usage AS u (key_id, period_start, requests)
        VALUES (found_key.id, period, 1)
        ON CONFLICT ON CONSTRAINT usage_pkey DO UPDATE
            SET requests = u.requests + 1
            WHERE u.requests < found_key.max_requests
        RETURNING u.requests INTO current_usage;
        valid := FOUND;
        code := CASE WHEN valid THEN 'VALID' ELSE 'USAGE_EXCEEDED' END;
    END IF;
    INSERT INTO byhand.requests (key_id, endpoint, method, status, code)
    VALUES (found_key.id, verify.endpoint, verify.method,
            CASE WHEN valid THEN 'allowed' ELSE 'denied' END, verify.code);
END
$$;

CREATE VIEW byhand.verified AS
SELECT (SELECT coalesce(sum(u.requests), 0) FROM byhand.usage u) AS usage,
       (SELECT count(*) FROM byhand.requests) AS history;

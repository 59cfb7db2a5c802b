-- Two ways to verify the same secrets: the extension, and the function that
-- people write by hand. Variables: keys, rows.

\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION apikeys CASCADE;

SELECT FROM apikey_plan_create('Bench', 1000000000, 'month', plan_id => 'bench');

CREATE SCHEMA bench;
CREATE TABLE bench.secrets (n int PRIMARY KEY, secret text NOT NULL);
INSERT INTO bench.secrets
SELECT n, k.api_key
  FROM generate_series(1, :keys) n,
       LATERAL apikey_create('key ' || n, 'user ' || n, 'bench') k;

-- A row that is looked up by its primary key, to compare with.
CREATE TABLE bench.texts (n int PRIMARY KEY, text text NOT NULL);
INSERT INTO bench.texts
SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, :rows) n;

-- By hand: a table each for plans, keys, counters and history.
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
SELECT digest(secret, 'sha256'), 'key ' || n, 'user ' || n, 'bench'
  FROM bench.secrets;

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

-- Rounds of both in turn. Each is one statement that calls its function once
-- for each of the first :warm secrets, :repeat times; its commit is not
-- counted. Round 0 makes everything warm. (OFFSET makes the secrets depend on
-- r: else the planner would call the function once a secret and keep that.)
CREATE TABLE bench.rounds (round int, side text, us float8);

CREATE FUNCTION bench.wait_for_history(expected bigint) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    WHILE (SELECT count(*) < expected FROM apikeys.requests) LOOP
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

CREATE PROCEDURE bench.compare(rounds int, warm int, repeat int)
LANGUAGE plpgsql
AS $$
DECLARE
    started timestamptz;
    us float8;
    valid bigint;
BEGIN
    FOR round IN 0 .. rounds LOOP
        started := clock_timestamp();
        SELECT count(*) FILTER (WHERE v.valid) INTO valid
          FROM generate_series(1, repeat) r,
               LATERAL (SELECT secret FROM bench.secrets
                         WHERE n <= warm OFFSET 0 * r) s,
               LATERAL apikey_verify(s.secret, '/v1/chat', 'POST') v;
        us := extract(epoch FROM clock_timestamp() - started) * 1000000 / (warm * repeat);
        INSERT INTO bench.rounds VALUES (round, 'apikey_verify', us);
        ASSERT valid = warm * repeat;
        COMMIT;

        -- What the worker has yet to write must not slow the other side.
        PERFORM bench.wait_for_history((round + 1) * warm * repeat);
        COMMIT;

        started := clock_timestamp();
        SELECT count(*) FILTER (WHERE v.valid) INTO valid
          FROM generate_series(1, repeat) r,
               LATERAL (SELECT secret FROM bench.secrets
                         WHERE n <= warm OFFSET 0 * r) s,
               LATERAL byhand.verify(s.secret, '/v1/chat', 'POST') v;
        us := extract(epoch FROM clock_timestamp() - started) * 1000000 / (warm * repeat);
        INSERT INTO bench.rounds VALUES (round, 'by hand', us);
        ASSERT valid = warm * repeat;
        ASSERT (round + 1) * warm * repeat = (SELECT sum(requests) FROM byhand.usage);
        COMMIT;
    END LOOP;
END
$$;

CREATE TABLE bench.tps (n serial, what text, per_second float8);
VACUUM ANALYZE;

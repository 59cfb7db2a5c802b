-- Time series: requests by key and outcome, an hour and a day. Counted by the
-- worker, apart from the history and longer than it. No foreign keys: the
-- worker must depend on no client's row.

-- Half of each page is left free: the rows of the current hour and day are
-- updated in place (HOT), all of a page at once.
CREATE TABLE apikeys.rollups (
    key_id uuid NOT NULL,
    step text NOT NULL
        CONSTRAINT rollups_step_check CHECK (step IN ('hour', 'day')),
    start timestamptz NOT NULL,
    code text NOT NULL,
    requests bigint NOT NULL,
    cost bigint NOT NULL,
    CONSTRAINT rollups_pkey PRIMARY KEY (key_id, step, start, code)
) WITH (fillfactor = 50);
SELECT pg_catalog.pg_extension_config_dump('apikeys.rollups', '');

-- The last hours of all keys. No column of it changes: updates stay HOT.
CREATE INDEX rollups_start_idx ON apikeys.rollups (start) WHERE step = 'hour';

COMMENT ON TABLE apikeys.rollups IS 'Requests by key and outcome, in each hour and each day (UTC)';
COMMENT ON COLUMN apikeys.rollups.key_id IS 'The key presented';
COMMENT ON COLUMN apikeys.rollups.step IS 'hour, kept for apikeys.rollup_retention, or day';
COMMENT ON COLUMN apikeys.rollups.start IS 'Start of the hour or day';
COMMENT ON COLUMN apikeys.rollups.code IS 'The outcome, such as VALID or USAGE_EXCEEDED';
COMMENT ON COLUMN apikeys.rollups.requests IS 'Requests with this outcome';
COMMENT ON COLUMN apikeys.rollups.cost IS 'What they consumed; 0 for those denied';
COMMENT ON CONSTRAINT rollups_pkey ON apikeys.rollups IS 'Rollups of one key, by time';
COMMENT ON INDEX apikeys.rollups_start_idx IS 'Hours of all keys, by time';

-- The same of all keys together, so that a sum over them costs nothing however
-- many they are. Written in the transaction that writes the rollups.
CREATE TABLE apikeys.rollup_totals (
    step text NOT NULL
        CONSTRAINT rollup_totals_step_check CHECK (step IN ('hour', 'day')),
    start timestamptz NOT NULL,
    code text NOT NULL,
    requests bigint NOT NULL,
    cost bigint NOT NULL,
    CONSTRAINT rollup_totals_pkey PRIMARY KEY (step, start, code)
) WITH (fillfactor = 50);
SELECT pg_catalog.pg_extension_config_dump('apikeys.rollup_totals', '');

COMMENT ON TABLE apikeys.rollup_totals IS 'Requests by outcome, in each hour and each day (UTC), of all keys together; purged ones too';
COMMENT ON COLUMN apikeys.rollup_totals.step IS 'hour, kept for apikeys.rollup_retention, or day';
COMMENT ON COLUMN apikeys.rollup_totals.start IS 'Start of the hour or day';
COMMENT ON COLUMN apikeys.rollup_totals.code IS 'The outcome, such as VALID or USAGE_EXCEEDED';
COMMENT ON COLUMN apikeys.rollup_totals.requests IS 'Requests with this outcome';
COMMENT ON COLUMN apikeys.rollup_totals.cost IS 'What they consumed; 0 for those denied';
COMMENT ON CONSTRAINT rollup_totals_pkey ON apikeys.rollup_totals IS 'Totals, by time';

-- Written in the transaction that writes the history, emptied in the one that
-- writes the rollups.
CREATE TABLE apikeys.rollup_journal (
    id uuid PRIMARY KEY DEFAULT apikeys.uuidv7(),
    start timestamptz NOT NULL,
    code text NOT NULL,
    first_key uuid NOT NULL,
    key_ids uuid[] NOT NULL,
    requests int[] NOT NULL,
    costs bigint[] NOT NULL,
    counts int NOT NULL
);
-- Read once, half a minute later: to compress it takes longer than to write it.
ALTER TABLE apikeys.rollup_journal
    ALTER COLUMN key_ids SET STORAGE EXTERNAL,
    ALTER COLUMN requests SET STORAGE EXTERNAL,
    ALTER COLUMN costs SET STORAGE EXTERNAL;
SELECT pg_catalog.pg_extension_config_dump('apikeys.rollup_journal', '');

-- Taken in this order: counts of the same keys, of many flushes, at once. (By a
-- column, since key_ids[1] would have to be read from the TOAST table.)
CREATE INDEX rollup_journal_first_key_idx ON apikeys.rollup_journal (first_key, id);

COMMENT ON TABLE apikeys.rollup_journal IS 'What is to be added to apikeys.rollups, for up to 30 seconds';
COMMENT ON COLUMN apikeys.rollup_journal.id IS 'Identifier';
COMMENT ON COLUMN apikeys.rollup_journal.start IS 'Start of the hour';
COMMENT ON COLUMN apikeys.rollup_journal.code IS 'The outcome, such as VALID or USAGE_EXCEEDED';
COMMENT ON COLUMN apikeys.rollup_journal.first_key IS 'The first of the keys, which follow one another';
COMMENT ON COLUMN apikeys.rollup_journal.key_ids IS 'The keys presented: each is a count';
COMMENT ON COLUMN apikeys.rollup_journal.requests IS 'Requests of each';
COMMENT ON COLUMN apikeys.rollup_journal.costs IS 'What those of each consumed; 0 for those denied';
COMMENT ON COLUMN apikeys.rollup_journal.counts IS 'How many counts the row holds';
COMMENT ON INDEX apikeys.rollup_journal_first_key_idx IS 'The order in which they are added';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.rollups
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.rollups ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.rollups IS 'They outlast the history from which they are counted';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.rollup_totals
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.rollup_totals ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.rollup_totals IS 'They outlast the history from which they are counted';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.rollup_journal
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.rollup_journal ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.rollup_journal IS 'Rollups depend on it';

CREATE TYPE apikeys.usage_bucket AS (
    bucket_start timestamptz, bucket_end timestamptz, allowed bigint,
    denied bigint, cost bigint, outcomes jsonb
);
COMMENT ON TYPE apikeys.usage_bucket IS 'One step of a time series of requests';
COMMENT ON COLUMN apikeys.usage_bucket.bucket_start IS 'Start of the hour, day, week, month or year, in UTC';
COMMENT ON COLUMN apikeys.usage_bucket.bucket_end IS 'Start of the next one';
COMMENT ON COLUMN apikeys.usage_bucket.allowed IS 'Requests that were valid';
COMMENT ON COLUMN apikeys.usage_bucket.denied IS 'Requests that were refused';
COMMENT ON COLUMN apikeys.usage_bucket.cost IS 'What those allowed consumed';
COMMENT ON COLUMN apikeys.usage_bucket.outcomes IS 'Requests by outcome, such as {"VALID": 3, "EXPIRED": 1}; {} for none';

CREATE FUNCTION apikeys.series_step(step text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
DECLARE
    steps CONSTANT text := 'The steps are "hour", "day", "week", "month" and "year";'
        ' every is one of them as an interval, such as 1 hour or 7 days.';
    given text := lower(btrim(series_step.step));
    answer text;
BEGIN
    IF given IS NULL THEN
        RAISE EXCEPTION 'step must not be null'
            USING ERRCODE = 'null_value_not_allowed', HINT = steps;
    END IF;
    IF given IN ('hour', 'day', 'week', 'month', 'year') THEN
        RETURN given;
    END IF;
    BEGIN
        answer := CASE (given::interval)::text
            WHEN '01:00:00' THEN 'hour'
            WHEN '1 day' THEN 'day'
            WHEN '24:00:00' THEN 'day'
            WHEN '7 days' THEN 'week'
            WHEN '1 mon' THEN 'month'
            WHEN '1 year' THEN 'year'
        END;
    EXCEPTION WHEN data_exception THEN
        NULL;
    END;
    IF answer IS NULL THEN
        RAISE EXCEPTION 'unknown step "%"', left(series_step.step, 63)
            USING ERRCODE = 'invalid_parameter_value', HINT = steps;
    END IF;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION apikeys.series_step(text) IS
'The step of a time series, by its name or as an interval.
Raises 22023 for any other, 22004 for none.';
REVOKE EXECUTE ON FUNCTION apikeys.series_step(text) FROM PUBLIC;

-- Weeks, months and years are sums of days, so that they are as old as daily
-- rows can be. Sorting takes half the time of hashing here, which would keep a
-- JSON object in the making for each bucket at once.
CREATE FUNCTION apikeys.usage_series(key_ids uuid[], step text, "from" timestamptz,
    "to" timestamptz)
RETURNS SETOF apikeys.usage_bucket
LANGUAGE plpgsql STABLE ROWS 100
SET search_path = pg_catalog, pg_temp
SET enable_hashagg = off
AS $$
DECLARE
    most CONSTANT int := 10000;
    unit text := apikeys.series_step(usage_series.step);
    source text := CASE unit WHEN 'hour' THEN 'hour' ELSE 'day' END;
    until timestamptz := coalesce(usage_series."to", now());
    since timestamptz := coalesce(usage_series."from", until - interval '720 hours');
    first_start timestamptz;
    last_end timestamptz;
    most_time bigint;
    bucket_starts timestamptz[];
BEGIN
    IF NOT isfinite(since) OR NOT isfinite(until) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = '"from" and "to" must be finite',
            HINT = 'Without them, the last 30 days are given.';
    END IF;
    IF until <= since THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = '"to" must be later than "from"',
            HINT = 'The first bucket is the one that holds "from", the last one starts before "to".';
    END IF;

    -- In numbers first: what is far too long is not even listed.
    first_start := apikeys.period_start(unit, '-infinity', since);
    most_time := most * CASE unit WHEN 'hour' THEN 3600
                                  WHEN 'day' THEN 86400
                                  WHEN 'week' THEN 7 * 86400
                                  WHEN 'month' THEN 31 * 86400
                                  ELSE 366 * 86400 END::bigint;
    IF extract(epoch FROM until) - extract(epoch FROM first_start) <= most_time THEN
        bucket_starts := ARRAY(
            SELECT s.start AT TIME ZONE 'UTC'
              FROM generate_series(first_start AT TIME ZONE 'UTC',
                                   until AT TIME ZONE 'UTC',
                                   ('1 ' || unit)::interval) s (start)
             WHERE s.start < until AT TIME ZONE 'UTC');
    END IF;
    IF (cardinality(bucket_starts) <= most) IS NOT TRUE THEN
        RAISE EXCEPTION 'more than % buckets', most
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use a longer step, or ask for one part of the time after the other.';
    END IF;
    IF usage_series.key_ids IS NULL THEN
        RETURN;
    END IF;
    last_end := apikeys.period_end(unit, '-infinity', bucket_starts[cardinality(bucket_starts)]);

    RETURN QUERY
        SELECT b.start, apikeys.period_end(unit, '-infinity', b.start),
               coalesce(c.allowed, 0), coalesce(c.denied, 0),
               coalesce(c.cost, 0), coalesce(c.outcomes, '{}')
          FROM unnest(bucket_starts) b (start)
          LEFT JOIN
               (SELECT o.bucket,
                       (sum(o.requests) FILTER (WHERE o.code = 'VALID'))::bigint AS allowed,
                       (sum(o.requests) FILTER (WHERE o.code <> 'VALID'))::bigint AS denied,
                       sum(o.cost)::bigint AS cost,
                       jsonb_object_agg(o.code, o.requests) FILTER (WHERE o.requests > 0) AS outcomes
                  FROM (SELECT CASE unit WHEN source THEN r.start
                                    ELSE apikeys.period_start(unit, '-infinity', r.start) END AS bucket,
                               r.code, sum(r.requests) AS requests, sum(r.cost) AS cost
                          FROM apikeys.rollups r
                         WHERE r.key_id = ANY (usage_series.key_ids)
                           AND r.step = source
                           AND r.start >= first_start AND r.start < last_end
                         GROUP BY 1, 2) o
                 GROUP BY o.bucket) c ON c.bucket = b.start
         ORDER BY b.start;
END
$$;
COMMENT ON FUNCTION apikeys.usage_series(uuid[], text, timestamptz, timestamptz) IS
'Requests of some keys together, in buckets without gaps.
No keys (NULL) give no rows. Raises 22023 for arguments that cannot be.';
REVOKE EXECUTE ON FUNCTION apikeys.usage_series(uuid[], text, timestamptz, timestamptz) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_usage_series(id uuid, step text = 'day',
    "from" timestamptz = NULL, "to" timestamptz = NULL)
RETURNS SETOF apikeys.usage_bucket
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
SELECT s.* FROM apikeys.usage_series(
    (SELECT array_agg(k.id) FROM apikeys.keys k WHERE k.id = apikey_usage_series.id),
    apikey_usage_series.step, apikey_usage_series."from", apikey_usage_series."to") s
$$;
COMMENT ON FUNCTION @extschema@.apikey_usage_series(uuid, text, timestamptz, timestamptz) IS
'Time series of a key''s requests: allowed, denied, cost and outcomes.
One row a step (hour, day, week, month or year, in UTC), oldest first, without gaps: from the one that holds "from" (30 days before "to") to the last that starts before "to" (now). Reads counts that outlast the history and are at most half a minute behind; hours are kept for apikeys.rollup_retention. An unknown id gives no row.
Raises 22004 for no step, 22023 for an unknown one, a "to" that is not later than "from", and for more than 10,000 rows.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_usage_series(uuid, text, timestamptz, timestamptz) FROM PUBLIC;

-- The argument has another name, since PostgREST tells functions apart by the
-- names of their arguments alone.
CREATE FUNCTION @extschema@.apikey_usage_series(id uuid, every interval,
    "from" timestamptz = NULL, "to" timestamptz = NULL)
RETURNS SETOF apikeys.usage_bucket
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
SELECT s.* FROM @extschema@.apikey_usage_series(apikey_usage_series.id,
    apikey_usage_series.every::text, apikey_usage_series."from", apikey_usage_series."to") s
$$;
COMMENT ON FUNCTION @extschema@.apikey_usage_series(uuid, interval, timestamptz, timestamptz) IS
'Time series of a key''s requests, with the step as an interval.
every is an hour, a day, a week, a month or a year; else as the function that takes the name of a step.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_usage_series(uuid, interval, timestamptz, timestamptz) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_usage_series(user_id text, step text = 'day',
    "from" timestamptz = NULL, "to" timestamptz = NULL)
RETURNS SETOF apikeys.usage_bucket
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
SELECT s.* FROM apikeys.usage_series(
    coalesce((SELECT array_agg(k.id) FROM apikeys.keys k
               WHERE k.user_id = apikey_user_usage_series.user_id),
             (SELECT '{}'::uuid[] FROM apikeys.users u
               WHERE u.id = apikey_user_usage_series.user_id)),
    apikey_user_usage_series.step, apikey_user_usage_series."from",
    apikey_user_usage_series."to") s
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_usage_series(text, text, timestamptz, timestamptz) IS
'Time series of the requests made with a user''s keys, all together.
The keys that the user owns now, with all that was requested with them; deleted ones count until they are purged. Else as apikey_usage_series. A user who has neither a row nor a key gives no row.
Raises 22004 for no step, 22023 for an unknown one, a "to" that is not later than "from", and for more than 10,000 rows.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_usage_series(text, text, timestamptz, timestamptz) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_usage_series(user_id text, every interval,
    "from" timestamptz = NULL, "to" timestamptz = NULL)
RETURNS SETOF apikeys.usage_bucket
LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
SET intervalstyle = 'postgres'
AS $$
SELECT s.* FROM @extschema@.apikey_user_usage_series(apikey_user_usage_series.user_id,
    apikey_user_usage_series.every::text, apikey_user_usage_series."from",
    apikey_user_usage_series."to") s
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_usage_series(text, interval, timestamptz, timestamptz) IS
'Time series of the requests made with a user''s keys, with the step as an interval.
every is an hour, a day, a week, a month or a year; else as the function that takes the name of a step.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_usage_series(text, interval, timestamptz, timestamptz) FROM PUBLIC;

-- The functions in C. Those that write run with the rights of the extension's
-- owner and a fixed search_path; the others touch no object by name.

CREATE FUNCTION @extschema@.apikey_create(
    name text,
    user_id text DEFAULT NULL,
    plan_id text DEFAULT NULL,
    metadata jsonb DEFAULT '{}',
    expires_at timestamptz DEFAULT NULL,
    prefix text DEFAULT NULL,
    api_id text DEFAULT 'default',
    permissions text[] DEFAULT '{}',
    enabled boolean DEFAULT true,
    allowed_ips cidr[] DEFAULT NULL,
    roles text[] DEFAULT '{}',
    credits bigint DEFAULT NULL,
    refill_amount bigint DEFAULT NULL,
    refill_every interval DEFAULT NULL,
    refill_day int DEFAULT NULL
) RETURNS apikeys.issued_key
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'apikey_create';
COMMENT ON FUNCTION @extschema@.apikey_create(text, text, text, jsonb, timestamptz, text, text, text[], boolean, cidr[], text[], bigint, bigint, interval, int) IS
'Create an API key.
Returns the key with its secret (api_key), which is shown this once. Without
expires_at the key lives as long as its plan says. It holds its permissions and
those of its roles; "docs.*" is all below "docs", "*" is everything. credits is
what it may consume in all (NULL: unlimited, or refill_amount); every
refill_every the balance is raised to refill_amount, on refill_day of the month
(31 is the last day) or of the week (1 is Monday), at midnight UTC. user_id need not have a row. Errors: P0002 for an unknown plan,
api or role and for a deleted user, 22004 and 22023 for arguments, 23514 if the
user has as many live keys as the plan allows.';

CREATE FUNCTION @extschema@.apikey_verify(
    key text,
    endpoint text DEFAULT NULL,
    method text DEFAULT NULL,
    ip_address inet DEFAULT NULL,
    cost bigint DEFAULT 1,
    permissions text DEFAULT NULL,
    api_id text DEFAULT NULL,
    tags text[] DEFAULT NULL,
    on_abort text DEFAULT 'keep',
    charges jsonb DEFAULT NULL
) RETURNS apikeys.verification
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_verify';
COMMENT ON FUNCTION @extschema@.apikey_verify(text, text, text, inet, bigint, text, text, text[], text, jsonb) IS
'Verify an API key and meter the request.
Always answers one row; call it as SELECT * FROM apikey_verify(...). code is
VALID or the first reason to refuse. A valid request consumes cost (0 to 2^31;
0 checks only), whatever becomes of the transaction; a denied one consumes
nothing. permissions is what the key must hold, itself or by its roles: names
with AND, OR, NOT (or & | !) and parentheses, at most 4,096 bytes and 64
parentheses deep. charges gives costs by the names of limits, such as
{"tokens": 500}, where they differ from cost, applies limits that do not apply
by themselves, and has the answer show every limit; {} only shows. Its member
"request_id", a text, has the request charged once, however often it is retried
within apikeys.request_id_window. on_abort =>
''refund'' gives back what is consumed if the transaction or savepoint aborts.
Works in READ ONLY transactions. Errors: 22004 and 22023 for arguments, such as a
syntax error in permissions, whatever the key; 25006 for a limit on a standby,
53000 if the worker cannot keep up.';

CREATE FUNCTION @extschema@.apikey_verify_many(
    keys text[],
    endpoint text DEFAULT NULL,
    method text DEFAULT NULL,
    ip_address inet DEFAULT NULL
) RETURNS SETOF apikeys.verification
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'apikey_verify_many';
COMMENT ON FUNCTION @extschema@.apikey_verify_many(text[], text, text, inet) IS
'Verify many API keys in one call.
One row each, in the order given; each valid one consumes one request. A key
that occurs twice is charged twice. Errors: 22004 and 22023 for the array, else
as apikey_verify.';

CREATE FUNCTION apikeys.key_of_secret(key text) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikeys_key_of_secret';
COMMENT ON FUNCTION apikeys.key_of_secret(text) IS
'Which key a secret belongs to.
NULL if it is no key''s, or the key was deleted. Meters and records nothing.';

CREATE FUNCTION @extschema@.apikey_regenerate(
    id uuid,
    grace interval DEFAULT '0'
) RETURNS apikeys.issued_key
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'apikey_regenerate';
COMMENT ON FUNCTION @extschema@.apikey_regenerate(uuid, interval) IS
'Give a key a new secret.
Id, usage, metadata and expiry stay. The old secret works for the grace, though
never beyond the key''s own expiry; an older one stops at once. A fence
(apikey_fence) is lifted. Errors: P0002 for an unknown or deleted key, 22004 and
22023 for arguments, 55000 for a grace of a fenced key.';

CREATE FUNCTION @extschema@.apikey_usage(id uuid) RETURNS apikeys.usage_report
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_usage';
COMMENT ON FUNCTION @extschema@.apikey_usage(uuid) IS
'Usage of a key in the current period.
Read from the meter, never behind. Where the plan is the user''s, the figures
are those that all keys of the user share. Errors: P0002 for an unknown key,
22004 for none.';

CREATE FUNCTION @extschema@.apikey_user_usage(user_id text) RETURNS apikeys.usage_report
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_user_usage';
COMMENT ON FUNCTION @extschema@.apikey_user_usage(text) IS
'Usage that the keys of a user share in the current period.
Keys with a plan of their own are not in it. Errors: P0002 for an unknown user,
22004 for none.';

CREATE FUNCTION @extschema@.apikey_purge(older_than interval) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'apikey_purge';
COMMENT ON FUNCTION @extschema@.apikey_purge(interval) IS
'Remove deleted keys, users and plans for good.
Those that were deleted at least that long ago go; plans still referred to stay, and users who still have keys.
The usage of keys and users that are gone is removed by the worker, a day later.
Returns how many rows went. Errors:
22004 and 22023 for the argument.';

CREATE FUNCTION apikeys.in_purge() RETURNS boolean
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_in_purge';
COMMENT ON FUNCTION apikeys.in_purge() IS
'Whether apikey_purge is running in this session.
Only then does a DELETE remove a row.';

CREATE FUNCTION apikeys.in_subscription() RETURNS boolean
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_in_subscription';
COMMENT ON FUNCTION apikeys.in_subscription() IS
'Whether this is a worker of logical replication, for a subscription of a superuser.
It changes rows as they were changed at the publisher, where triggers have done their part.';

CREATE FUNCTION apikeys.is_rate(amount bigint, period interval, burst bigint) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_is_rate';
COMMENT ON FUNCTION apikeys.is_rate(bigint, interval, bigint) IS
'Whether a rate can be computed with.
amount and burst are at least 1; the period is positive, has no months, and at
most one request a nanosecond; a burst fills within a century.';

CREATE FUNCTION apikeys.keys_before_write() RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'apikeys_keys_before_write';
COMMENT ON FUNCTION apikeys.keys_before_write() IS
'Trigger: check and complete a row of apikeys.keys.
A new key takes its expiry from its plan and is refused if it lies in the past
or the user has keys enough; a restored row is left as it is. Permissions that
are new to the key must be such as can be held.';

CREATE FUNCTION apikeys.check_permissions(permissions text[]) RETURNS void
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_check_permissions';
COMMENT ON FUNCTION apikeys.check_permissions(text[]) IS
'Refuse permissions that cannot be held.
A permission is 1 to 255 bytes: segments of letters, digits, "_", ":" and "-",
with periods between them; the last one may be the wildcard "*". Raises 22023;
says which element is wrong, and where.';

CREATE FUNCTION apikeys.announce_change() RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'apikeys_announce_change';
COMMENT ON FUNCTION apikeys.announce_change() IS
'Trigger: make a change durable at its commit, and known to every session.';

CREATE FUNCTION apikeys.meter(
    OUT subject_id uuid,
    OUT subject text,
    OUT period text,
    OUT period_start timestamptz,
    OUT current_usage bigint,
    OUT charged bigint,
    OUT ceiling bigint
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_meter';
COMMENT ON FUNCTION apikeys.meter() IS
'The counts of this database that are in shared memory.
charged is held against the limit; it exceeds current_usage by what crashes
cost. ceiling is how far admission may go before the worker writes again.';

CREATE FUNCTION apikeys.count_of(
    subject_id uuid,
    subject text,
    period text,
    period_start timestamptz,
    max_requests bigint,
    OUT current_usage bigint,
    OUT charged bigint
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikeys_count_of';
COMMENT ON FUNCTION apikeys.count_of(uuid, text, text, timestamptz, bigint) IS
'One count of this database, from the meter or else from apikeys.usage.
max_requests is the limit, NULL if there is none: it decides what a crash cost.';

CREATE FUNCTION apikeys.statistics(
    OUT name text,
    OUT value bigint,
    OUT description text
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_statistics';
COMMENT ON FUNCTION apikeys.statistics() IS
'Statistics of this database since the server''s start.';

CREATE FUNCTION apikeys.worker(
    OUT pid int,
    OUT last_flush_at timestamptz,
    OUT last_failure_at timestamptz,
    OUT last_failure_code text,
    OUT last_failure_message text
) RETURNS record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_worker';
COMMENT ON FUNCTION apikeys.worker() IS
'The worker of this database, and what last went wrong.
All that is not known since the server''s start is NULL; pid is NULL while no worker is attached.';

CREATE FUNCTION apikeys.period_start(period text, anchor timestamptz, at timestamptz) RETURNS timestamptz
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_period_start';
COMMENT ON FUNCTION apikeys.period_start(text, timestamptz, timestamptz) IS
'When the period began that holds a moment.
period: minute, hour, day, week, month or year; anchor: the start of one period,
or -infinity for the calendar in UTC.';

CREATE FUNCTION apikeys.period_end(period text, anchor timestamptz, at timestamptz) RETURNS timestamptz
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_period_end';
COMMENT ON FUNCTION apikeys.period_end(text, timestamptz, timestamptz) IS
'When the period ends that holds a moment; see apikeys.period_start.';

REVOKE EXECUTE ON FUNCTION
    @extschema@.apikey_create(text, text, text, jsonb, timestamptz, text, text, text[], boolean, cidr[], text[], bigint, bigint, interval, int),
    @extschema@.apikey_verify(text, text, text, inet, bigint, text, text, text[], text, jsonb),
    @extschema@.apikey_verify_many(text[], text, text, inet),
    @extschema@.apikey_regenerate(uuid, interval),
    @extschema@.apikey_usage(uuid),
    @extschema@.apikey_user_usage(text),
    @extschema@.apikey_purge(interval),
    apikeys.key_of_secret(text),
    apikeys.in_purge(),
    apikeys.in_subscription(),
    apikeys.is_rate(bigint, interval, bigint),
    apikeys.keys_before_write(),
    apikeys.check_permissions(text[]),
    apikeys.announce_change(),
    apikeys.meter(),
    apikeys.count_of(uuid, text, text, timestamptz, bigint),
    apikeys.statistics(),
    apikeys.worker(),
    apikeys.period_start(text, timestamptz, timestamptz),
    apikeys.period_end(text, timestamptz, timestamptz)
FROM PUBLIC;

-- Tables. Each is registered for pg_dump at once: its rows are user data.
-- Rows of a restore arrive before indexes and constraints of dependent objects
-- can be relied on, so triggers tell a new row (created_at is this
-- transaction's time) from a restored one.

CREATE TABLE apikeys.plans (
    id text PRIMARY KEY DEFAULT apikeys.uuidv7()::text
        CONSTRAINT plans_id_check CHECK (octet_length(id) BETWEEN 1 AND 255),
    name text NOT NULL
        CONSTRAINT plans_name_check CHECK (length(name) BETWEEN 1 AND 255),
    description text,
    max_requests bigint
        CONSTRAINT plans_max_requests_check CHECK (max_requests >= 0),
    request_period text NOT NULL DEFAULT 'month'
        CONSTRAINT plans_request_period_check
        CHECK (request_period IN ('minute', 'hour', 'day', 'week', 'month', 'year')),
    is_active boolean NOT NULL DEFAULT true,
    key_lifetime interval
        CONSTRAINT plans_key_lifetime_check CHECK (key_lifetime > '0'),
    max_keys_per_user int
        CONSTRAINT plans_max_keys_per_user_check CHECK (max_keys_per_user >= 0),
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT plans_metadata_check CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    http_role text
        CONSTRAINT plans_http_role_check CHECK (octet_length(http_role) BETWEEN 1 AND 63)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.plans', '');

CREATE INDEX plans_metadata_idx ON apikeys.plans USING gin (metadata jsonb_path_ops);

COMMENT ON TABLE apikeys.plans IS 'Named bundles of limits';
COMMENT ON COLUMN apikeys.plans.id IS 'Identifier, chosen by the caller or a uuid';
COMMENT ON COLUMN apikeys.plans.name IS 'Name shown to people';
COMMENT ON COLUMN apikeys.plans.description IS 'What the plan offers';
COMMENT ON COLUMN apikeys.plans.max_requests IS 'Quota: requests admitted per period; NULL (or -1 on input) is unlimited';
COMMENT ON COLUMN apikeys.plans.request_period IS 'Calendar period of the quota: minute, hour, day, week, month or year (UTC)';
COMMENT ON COLUMN apikeys.plans.is_active IS 'False switches every key of the plan off';
COMMENT ON COLUMN apikeys.plans.key_lifetime IS 'How long a new key lives if its creation does not say; NULL is for ever';
COMMENT ON COLUMN apikeys.plans.max_keys_per_user IS 'How many live keys a user may hold; NULL is any number';
COMMENT ON COLUMN apikeys.plans.metadata IS 'The application''s own data, a JSON object';
COMMENT ON COLUMN apikeys.plans.created_at IS 'When the plan was made';
COMMENT ON COLUMN apikeys.plans.updated_at IS 'When the plan was last changed';
COMMENT ON COLUMN apikeys.plans.deleted_at IS 'When the plan was deleted; its keys are refused from then on';
COMMENT ON COLUMN apikeys.plans.http_role IS 'Database role that requests over HTTP run as; NULL takes the api''s';
COMMENT ON INDEX apikeys.plans_metadata_idx IS 'Containment searches in metadata (@>)';

CREATE TABLE apikeys.apis (
    id text PRIMARY KEY
        CONSTRAINT apis_id_check CHECK (octet_length(id) BETWEEN 1 AND 255),
    name text,
    default_prefix text
        CONSTRAINT apis_default_prefix_check CHECK (default_prefix ~ '^[a-zA-Z0-9_]{1,32}$'),
    default_plan_id text
        CONSTRAINT apis_default_plan_id_fkey REFERENCES apikeys.plans (id),
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT apis_metadata_check CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    http_role text
        CONSTRAINT apis_http_role_check CHECK (octet_length(http_role) BETWEEN 1 AND 63)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.apis', '');

COMMENT ON TABLE apikeys.apis IS 'The sets of keys that guard one product each; "default" is made when first needed';
COMMENT ON COLUMN apikeys.apis.id IS 'Identifier, as given to api_id';
COMMENT ON COLUMN apikeys.apis.name IS 'Name shown to people';
COMMENT ON COLUMN apikeys.apis.default_prefix IS 'Prefix of new secrets; NULL takes the setting apikeys.default_prefix';
COMMENT ON COLUMN apikeys.apis.default_plan_id IS 'Plan of keys that have none, neither of their own nor through their user';
COMMENT ON COLUMN apikeys.apis.metadata IS 'The application''s own data, a JSON object';
COMMENT ON COLUMN apikeys.apis.created_at IS 'When the api was made';
COMMENT ON COLUMN apikeys.apis.http_role IS 'Database role that requests over HTTP run as, where the plan names none; NULL keeps PostgREST''s';

CREATE TABLE apikeys.users (
    id text PRIMARY KEY
        CONSTRAINT users_id_check CHECK (octet_length(id) BETWEEN 1 AND 255),
    name text,
    email text
        CONSTRAINT users_email_check CHECK (email ~ '^[^@[:space:]]+@[^@[:space:]]+$'),
    plan_id text
        CONSTRAINT users_plan_id_fkey REFERENCES apikeys.plans (id),
    custom_start timestamptz
        CONSTRAINT users_custom_start_check CHECK (isfinite(custom_start)),
    is_disabled boolean NOT NULL DEFAULT false,
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT users_metadata_check CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    subject_id uuid NOT NULL DEFAULT apikeys.uuidv7(),
    credits bigint
        CONSTRAINT users_credits_check CHECK (credits BETWEEN -2305843009213693952 AND 2305843009213693952),
    refill_amount bigint
        CONSTRAINT users_refill_amount_check CHECK (refill_amount BETWEEN 1 AND 2305843009213693952),
    refill_every interval,
    refill_day int,
    refill_since timestamptz,
    CONSTRAINT users_refill_check
        CHECK (CASE WHEN refill_amount IS NULL THEN num_nonnulls(refill_every, refill_day, refill_since) = 0
               ELSE num_nonnulls(refill_every, refill_since) = 2 AND refill_every > '0' END),
    erased_at timestamptz,
    CONSTRAINT users_erased_check CHECK (erased_at IS NULL OR deleted_at IS NOT NULL)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.users', '');

CREATE UNIQUE INDEX users_email_key ON apikeys.users (lower(email)) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_subject_id_key ON apikeys.users (subject_id);
CREATE INDEX users_plan_id_idx ON apikeys.users (plan_id, id) WHERE plan_id IS NOT NULL;
CREATE INDEX users_metadata_idx ON apikeys.users USING gin (metadata jsonb_path_ops);

COMMENT ON TABLE apikeys.users IS 'Owners of keys that need a plan, a switch or a name; a key may name a user who has no row';
COMMENT ON COLUMN apikeys.users.id IS 'The application''s own identifier of the user';
COMMENT ON COLUMN apikeys.users.name IS 'Name shown to people';
COMMENT ON COLUMN apikeys.users.email IS 'Address, unique among users not deleted';
COMMENT ON COLUMN apikeys.users.plan_id IS 'Plan shared by all keys of the user that have none of their own';
COMMENT ON COLUMN apikeys.users.custom_start IS 'Anchor of the user''s periods; NULL is the calendar in UTC';
COMMENT ON COLUMN apikeys.users.is_disabled IS 'True switches every key of the user off';
COMMENT ON COLUMN apikeys.users.metadata IS 'The application''s own data, a JSON object';
COMMENT ON COLUMN apikeys.users.created_at IS 'When the user was made';
COMMENT ON COLUMN apikeys.users.updated_at IS 'When the user was last changed';
COMMENT ON COLUMN apikeys.users.deleted_at IS 'When the user was deleted; the user''s keys are refused from then on';
COMMENT ON COLUMN apikeys.users.subject_id IS 'What the meter knows the user by (apikeys.usage.subject_id)';
COMMENT ON COLUMN apikeys.users.credits IS 'Credits granted to the user in all, consumed ones included, for all keys that have none of their own; NULL is unlimited. Add to it, do not set it: apikey_user_credits sets what is left, apikey_user_usage shows it';
COMMENT ON COLUMN apikeys.users.refill_amount IS 'What a refill raises the balance to, if it is lower; NULL is no refill';
COMMENT ON COLUMN apikeys.users.refill_every IS 'Interval between refills';
COMMENT ON COLUMN apikeys.users.refill_day IS 'Day of a refill: of the month (31 is the last one), or of the week (1 is Monday)';
COMMENT ON COLUMN apikeys.users.refill_since IS 'When the refill was set up; set by a trigger';
COMMENT ON COLUMN apikeys.users.erased_at IS 'When the person was erased (apikey_erase_user)';
COMMENT ON INDEX apikeys.users_email_key IS 'Emails are unique among users not deleted, whatever their case';
COMMENT ON INDEX apikeys.users_subject_id_key IS 'From a row of apikeys.usage to its user';
COMMENT ON INDEX apikeys.users_plan_id_idx IS 'Users of a plan';
COMMENT ON INDEX apikeys.users_metadata_idx IS 'Containment searches in metadata (@>)';

CREATE TABLE apikeys.roles (
    name text PRIMARY KEY
        CONSTRAINT roles_name_check CHECK (octet_length(name) BETWEEN 1 AND 255),
    description text,
    permissions text[] NOT NULL DEFAULT '{}'
        CONSTRAINT roles_permissions_check CHECK (array_position(permissions, NULL) IS NULL),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.roles', '');

COMMENT ON TABLE apikeys.roles IS 'Named bundles of permissions';
COMMENT ON COLUMN apikeys.roles.name IS 'Name, as keys give it in their roles';
COMMENT ON COLUMN apikeys.roles.description IS 'What the role is for';
COMMENT ON COLUMN apikeys.roles.permissions IS 'What a key with the role may do, besides its own permissions; written like those';
COMMENT ON COLUMN apikeys.roles.created_at IS 'When the role was made';
COMMENT ON COLUMN apikeys.roles.updated_at IS 'When the role was last changed';

-- Room is left in each page (fillfactor) so that last_used_at, which no index
-- holds, is updated in place (HOT).
CREATE TABLE apikeys.keys (
    id uuid PRIMARY KEY DEFAULT apikeys.uuidv7(),
    api_id text NOT NULL DEFAULT 'default'
        CONSTRAINT keys_api_id_fkey REFERENCES apikeys.apis (id),
    name text NOT NULL
        CONSTRAINT keys_name_check CHECK (length(name) BETWEEN 1 AND 255),
    user_id text
        CONSTRAINT keys_user_id_check CHECK (octet_length(user_id) BETWEEN 1 AND 255),
    plan_id text
        CONSTRAINT keys_plan_id_fkey REFERENCES apikeys.plans (id),
    enabled boolean NOT NULL DEFAULT true,
    start text NOT NULL,
    digest bytea NOT NULL
        CONSTRAINT keys_digest_check CHECK (octet_length(digest) = 32),
    previous_digest bytea
        CONSTRAINT keys_previous_digest_check CHECK (octet_length(previous_digest) = 32),
    previous_expires_at timestamptz,
    permissions text[] NOT NULL DEFAULT '{}'
        CONSTRAINT keys_permissions_check CHECK (array_position(permissions, NULL) IS NULL),
    allowed_ips cidr[]
        CONSTRAINT keys_allowed_ips_check CHECK (array_position(allowed_ips, NULL) IS NULL),
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT keys_metadata_check CHECK (jsonb_typeof(metadata) = 'object'),
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    regenerated_at timestamptz,
    deleted_at timestamptz,
    has_limits boolean NOT NULL DEFAULT false,
    roles text[] NOT NULL DEFAULT '{}'
        CONSTRAINT keys_roles_check CHECK (array_position(roles, NULL) IS NULL),
    credits bigint
        CONSTRAINT keys_credits_check CHECK (credits BETWEEN -2305843009213693952 AND 2305843009213693952),
    refill_amount bigint
        CONSTRAINT keys_refill_amount_check CHECK (refill_amount BETWEEN 1 AND 2305843009213693952),
    refill_every interval,
    refill_day int,
    refill_since timestamptz,
    CONSTRAINT keys_refill_check
        CHECK (CASE WHEN refill_amount IS NULL THEN num_nonnulls(refill_every, refill_day, refill_since) = 0
               ELSE num_nonnulls(refill_every, refill_since) = 2 AND refill_every > '0' END),
    erased_at timestamptz,
    CONSTRAINT keys_erased_check CHECK (erased_at IS NULL OR deleted_at IS NOT NULL),
    CONSTRAINT keys_digest_key UNIQUE (digest),
    CONSTRAINT keys_previous_check
        CHECK ((previous_digest IS NULL) = (previous_expires_at IS NULL)),
    fenced_at timestamptz
) WITH (fillfactor = 85);
SELECT pg_catalog.pg_extension_config_dump('apikeys.keys', '');

CREATE UNIQUE INDEX keys_previous_digest_key ON apikeys.keys (previous_digest) WHERE previous_digest IS NOT NULL;
CREATE INDEX keys_api_id_idx ON apikeys.keys (api_id, id);
CREATE INDEX keys_user_id_idx ON apikeys.keys (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX keys_plan_id_idx ON apikeys.keys (plan_id, id) WHERE plan_id IS NOT NULL;
CREATE INDEX keys_expires_at_idx ON apikeys.keys (expires_at) WHERE expires_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX keys_metadata_idx ON apikeys.keys USING gin (metadata jsonb_path_ops);

COMMENT ON TABLE apikeys.keys IS 'API keys; a DELETE only marks a row (deleted_at), apikey_purge removes it';
COMMENT ON COLUMN apikeys.keys.id IS 'Identifier, a uuid of version 7, never changes';
COMMENT ON COLUMN apikeys.keys.api_id IS 'The api that the key opens';
COMMENT ON COLUMN apikeys.keys.name IS 'Name shown to people';
COMMENT ON COLUMN apikeys.keys.user_id IS 'The owner, an id of the application''s; need not have a row in apikeys.users';
COMMENT ON COLUMN apikeys.keys.plan_id IS 'The key''s own plan; NULL takes the user''s, then the api''s';
COMMENT ON COLUMN apikeys.keys.enabled IS 'False switches the key off';
COMMENT ON COLUMN apikeys.keys.start IS 'Prefix and first four characters of the secret, to recognise it by';
COMMENT ON COLUMN apikeys.keys.digest IS 'SHA-256 of the secret';
COMMENT ON COLUMN apikeys.keys.previous_digest IS 'SHA-256 of the secret before the last regeneration, if it was given a grace';
COMMENT ON COLUMN apikeys.keys.previous_expires_at IS 'Until when the previous secret works';
COMMENT ON COLUMN apikeys.keys.permissions IS 'What the key may do, by name; "docs.*" is all below "docs", "*" is everything';
COMMENT ON COLUMN apikeys.keys.allowed_ips IS 'Networks the key may be used from; NULL is anywhere';
COMMENT ON COLUMN apikeys.keys.metadata IS 'The application''s own data, a JSON object';
COMMENT ON COLUMN apikeys.keys.expires_at IS 'From when on the key is refused; NULL is never';
COMMENT ON COLUMN apikeys.keys.created_at IS 'When the key was made';
COMMENT ON COLUMN apikeys.keys.updated_at IS 'When the key was last changed (not by use)';
COMMENT ON COLUMN apikeys.keys.last_used_at IS 'When the key was last verified, to within apikeys.last_used_interval';
COMMENT ON COLUMN apikeys.keys.regenerated_at IS 'When the secret was last replaced';
COMMENT ON COLUMN apikeys.keys.deleted_at IS 'When the key was deleted';
COMMENT ON COLUMN apikeys.keys.has_limits IS 'Whether apikeys.limits has rows of the key''s own; kept by a trigger';
COMMENT ON COLUMN apikeys.keys.roles IS 'Roles whose permissions the key holds too; one that does not exist grants nothing';
COMMENT ON COLUMN apikeys.keys.credits IS 'Credits granted to the key in all, consumed ones included; NULL is unlimited. Add to it, do not set it: apikey_credits sets what is left, apikey_usage shows it';
COMMENT ON COLUMN apikeys.keys.refill_amount IS 'What a refill raises the balance to, if it is lower; NULL is no refill';
COMMENT ON COLUMN apikeys.keys.refill_every IS 'Interval between refills';
COMMENT ON COLUMN apikeys.keys.refill_day IS 'Day of a refill: of the month (31 is the last one), or of the week (1 is Monday)';
COMMENT ON COLUMN apikeys.keys.refill_since IS 'When the refill was set up; set by a trigger';
COMMENT ON COLUMN apikeys.keys.erased_at IS 'When the key''s user was erased; the key cannot be restored';
COMMENT ON COLUMN apikeys.keys.fenced_at IS 'Since when the secret is refused until it is replaced (apikey_fence); NULL is not';
COMMENT ON INDEX apikeys.keys_digest_key IS 'Verification: from the digest of a secret to its key';
COMMENT ON INDEX apikeys.keys_previous_digest_key IS 'Verification in the grace after a regeneration';
COMMENT ON INDEX apikeys.keys_api_id_idx IS 'Keys of an api, in order';
COMMENT ON INDEX apikeys.keys_user_id_idx IS 'Keys of a user, in order';
COMMENT ON INDEX apikeys.keys_plan_id_idx IS 'Keys of a plan, in order';
COMMENT ON INDEX apikeys.keys_expires_at_idx IS 'The sweep of expired keys';
COMMENT ON INDEX apikeys.keys_metadata_idx IS 'Containment searches in metadata (@>)';

-- Rates, by the name of who sets them. The quota of a plan is in apikeys.plans.
CREATE TABLE apikeys.limits (
    id uuid PRIMARY KEY DEFAULT apikeys.uuidv7(),
    plan_id text
        CONSTRAINT limits_plan_id_fkey REFERENCES apikeys.plans (id),
    user_id text
        CONSTRAINT limits_user_id_fkey REFERENCES apikeys.users (id),
    key_id uuid
        CONSTRAINT limits_key_id_fkey REFERENCES apikeys.keys (id),
    name text NOT NULL
        CONSTRAINT limits_name_check
        CHECK (octet_length(name) >= 1 AND octet_length(name) <= 63
               AND name NOT IN ('quota', 'credits', 'request_id')),
    amount bigint NOT NULL
        CONSTRAINT limits_amount_check CHECK (amount > 0),
    period interval NOT NULL
        CONSTRAINT limits_period_check CHECK (period > '0'),
    burst bigint NOT NULL
        CONSTRAINT limits_burst_check CHECK (burst > 0),
    auto_apply boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT limits_owner_check CHECK (num_nonnulls(plan_id, user_id, key_id) = 1),
    CONSTRAINT limits_plan_id_key UNIQUE (plan_id, name),
    CONSTRAINT limits_user_id_key UNIQUE (user_id, name),
    CONSTRAINT limits_key_id_key UNIQUE (key_id, name)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.limits', '');

COMMENT ON TABLE apikeys.limits IS 'Rates: so many requests per interval, with a burst, set by a plan, a user or a key';
COMMENT ON COLUMN apikeys.limits.id IS 'Identifier';
COMMENT ON COLUMN apikeys.limits.plan_id IS 'The plan that sets the rate: for each key, or for all keys of a user, like its quota';
COMMENT ON COLUMN apikeys.limits.user_id IS 'The user who sets it, for all keys of the user together; stands in for the plan''s of that name';
COMMENT ON COLUMN apikeys.limits.key_id IS 'The key that sets it; stands in for its user''s and its plan''s of that name';
COMMENT ON COLUMN apikeys.limits.name IS 'Name, by which a call can charge it';
COMMENT ON COLUMN apikeys.limits.amount IS 'Requests per period, sustained';
COMMENT ON COLUMN apikeys.limits.period IS 'Period, of days or shorter units';
COMMENT ON COLUMN apikeys.limits.burst IS 'Requests that may come at once; amount if it is not given; while it equals amount, it follows it';
COMMENT ON COLUMN apikeys.limits.auto_apply IS 'Whether it applies to each request, or only to those that name it';
COMMENT ON COLUMN apikeys.limits.created_at IS 'When it was made';
COMMENT ON COLUMN apikeys.limits.updated_at IS 'When it was last changed';
COMMENT ON INDEX apikeys.limits_plan_id_key IS 'Rates of a plan, by name';
COMMENT ON INDEX apikeys.limits_user_id_key IS 'Rates of a user, by name';
COMMENT ON INDEX apikeys.limits_key_id_key IS 'Rates of a key, by name';

-- History. No foreign keys: the worker must depend on no client's row. The
-- root carries no index, since one there breaks a restore: each partition has
-- its own. The DEFAULT partition is the extension's; dated ones are made by
-- the worker and dump as ordinary tables. None has a primary key: without
-- another replica identity, a publication of all tables would refuse what the
-- worker and an erasure change.
CREATE TABLE apikeys.requests (
    "timestamp" timestamptz NOT NULL,
    key_id uuid NOT NULL,
    endpoint text,
    method text,
    status text NOT NULL,
    code text NOT NULL,
    ip_address inet,
    cost bigint NOT NULL,
    tags text[]
) PARTITION BY RANGE ("timestamp");

CREATE TABLE apikeys.requests_default PARTITION OF apikeys.requests DEFAULT;
SELECT pg_catalog.pg_extension_config_dump('apikeys.requests_default', '');
ALTER TABLE apikeys.requests REPLICA IDENTITY FULL;
ALTER TABLE apikeys.requests_default REPLICA IDENTITY FULL;

CREATE INDEX requests_default_key_id_idx ON apikeys.requests_default (key_id, "timestamp");
CREATE INDEX requests_default_denied_idx ON apikeys.requests_default ("timestamp") WHERE status = 'denied';

-- Each sweep looks here for what is older than its retention. It has much after a
-- restore of data alone, else next to nothing, so the index costs nothing.
CREATE INDEX requests_default_timestamp_idx ON apikeys.requests_default ("timestamp");

COMMENT ON TABLE apikeys.requests IS 'Request history: one row a verification of a known key, by day';
COMMENT ON COLUMN apikeys.requests."timestamp" IS 'When the decision was made';
COMMENT ON COLUMN apikeys.requests.key_id IS 'The key presented';
COMMENT ON COLUMN apikeys.requests.endpoint IS 'What was called, as the caller said, cut at 1,024 bytes';
COMMENT ON COLUMN apikeys.requests.method IS 'How it was called, as the caller said, cut at 32 bytes';
COMMENT ON COLUMN apikeys.requests.status IS 'allowed or denied';
COMMENT ON COLUMN apikeys.requests.code IS 'The outcome, such as VALID or USAGE_EXCEEDED';
COMMENT ON COLUMN apikeys.requests.ip_address IS 'The client''s address, as the caller said';
COMMENT ON COLUMN apikeys.requests.cost IS 'What was asked for; a denied request consumed none of it';
COMMENT ON COLUMN apikeys.requests.tags IS 'The caller''s labels, at most 1,024 bytes together';
COMMENT ON TABLE apikeys.requests_default IS 'History for which no dated partition was ready';
COMMENT ON INDEX apikeys.requests_default_key_id_idx IS 'History of one key, by time';
COMMENT ON INDEX apikeys.requests_default_timestamp_idx IS 'What has to go, or to move to its day''s partition';
COMMENT ON INDEX apikeys.requests_default_denied_idx IS 'What was refused, of all keys, by time';

-- The durable side of the meter. Written by the worker alone, and rarely:
-- when a ceiling moves or a subject goes idle. No foreign keys, as above.
CREATE TABLE apikeys.usage (
    subject_id uuid NOT NULL,
    subject text NOT NULL
        CONSTRAINT usage_subject_check CHECK (subject IN ('key', 'user')),
    period text NOT NULL
        CONSTRAINT usage_period_check
        CHECK (period IN ('minute', 'hour', 'day', 'week', 'month', 'year', 'credits')),
    period_start timestamptz NOT NULL,
    current_usage bigint NOT NULL,
    charged bigint NOT NULL,
    ceiling bigint NOT NULL,
    incarnation uuid NOT NULL,
    updated_at timestamptz NOT NULL,
    refilled_at timestamptz,
    CONSTRAINT usage_pkey PRIMARY KEY (subject_id, period, period_start)
) WITH (fillfactor = 50);
SELECT pg_catalog.pg_extension_config_dump('apikeys.usage', '');

COMMENT ON TABLE apikeys.usage IS 'The durable side of the meter; apikeys.live_usage shows the live figures';
COMMENT ON COLUMN apikeys.usage.subject_id IS 'Who is metered: keys.id or users.subject_id';
COMMENT ON COLUMN apikeys.usage.subject IS 'key, or user where the keys of a user share the user''s plan';
COMMENT ON COLUMN apikeys.usage.period IS 'Unit of the period; credits is what was consumed of them, for ever';
COMMENT ON COLUMN apikeys.usage.period_start IS 'Start of the period; -infinity for credits';
COMMENT ON COLUMN apikeys.usage.current_usage IS 'Requests admitted in the period, as billed: a crash never raises it';
COMMENT ON COLUMN apikeys.usage.charged IS 'Requests charged against the limit: current_usage and what crashes cost; of credits, less what refills added';
COMMENT ON COLUMN apikeys.usage.ceiling IS 'How far admission may have gone before the next write; where a crash resumes';
COMMENT ON COLUMN apikeys.usage.incarnation IS 'The incarnation of the meter that wrote the row';
COMMENT ON COLUMN apikeys.usage.updated_at IS 'When the row was written';
COMMENT ON COLUMN apikeys.usage.refilled_at IS 'The last refill of credits that was applied';

-- What changes counts other than requests: grants and refills of credits, and
-- corrections by hand. Only ever added to; kept when a key is purged.
CREATE TABLE apikeys.ledger (
    id uuid PRIMARY KEY DEFAULT apikeys.uuidv7(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    subject_id uuid NOT NULL,
    subject text NOT NULL
        CONSTRAINT ledger_subject_check CHECK (subject IN ('key', 'user')),
    kind text NOT NULL
        CONSTRAINT ledger_kind_check CHECK (kind IN ('credits', 'usage')),
    operation text NOT NULL
        CONSTRAINT ledger_operation_check
        CHECK (operation IN ('grant', 'deduct', 'unlimited', 'refill', 'correction', 'adjust')),
    amount bigint NOT NULL,
    period text,
    period_start timestamptz,
    reason text,
    actor text DEFAULT session_user
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.ledger', '');

CREATE INDEX ledger_subject_id_idx ON apikeys.ledger (subject_id, id);

COMMENT ON TABLE apikeys.ledger IS 'What has changed balances and counts other than requests: for credits, the sum of the amounts less what was consumed is the balance';
COMMENT ON COLUMN apikeys.ledger.id IS 'Identifier, in the order of time';
COMMENT ON COLUMN apikeys.ledger.created_at IS 'When it was written';
COMMENT ON COLUMN apikeys.ledger.subject_id IS 'Whose count it is: keys.id or users.subject_id';
COMMENT ON COLUMN apikeys.ledger.subject IS 'key or user';
COMMENT ON COLUMN apikeys.ledger.kind IS 'credits, or usage for the count of a period';
COMMENT ON COLUMN apikeys.ledger.operation IS 'Credits: grant, deduct, unlimited (what was left is given up), refill, correction (what a crash cost, or a late refund). Usage: adjust';
COMMENT ON COLUMN apikeys.ledger.amount IS 'What was added; negative: taken';
COMMENT ON COLUMN apikeys.ledger.period IS 'Usage: unit of the period';
COMMENT ON COLUMN apikeys.ledger.period_start IS 'Usage: start of the period';
COMMENT ON COLUMN apikeys.ledger.reason IS 'Why, as who did it has said';
COMMENT ON COLUMN apikeys.ledger.actor IS 'Who did it (session_user); NULL is the meter itself';
COMMENT ON INDEX apikeys.ledger_subject_id_idx IS 'Ledger of one key or user, in order';

-- One row a time that the meter of this database was open. A row left without
-- closed_at tells of a crash: what it metered resumes at the ceilings.
CREATE TABLE apikeys.incarnations (
    id uuid PRIMARY KEY,
    started_at timestamptz NOT NULL,
    closed_at timestamptz,
    superseded_at timestamptz
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.incarnations', '');

COMMENT ON TABLE apikeys.incarnations IS 'When the meter of this database was open, and whether it was closed cleanly';
COMMENT ON COLUMN apikeys.incarnations.id IS 'Identifier, as in apikeys.usage.incarnation';
COMMENT ON COLUMN apikeys.incarnations.started_at IS 'When the meter was opened';
COMMENT ON COLUMN apikeys.incarnations.closed_at IS 'When it was closed with all counts written; NULL while open or after a crash';
COMMENT ON COLUMN apikeys.incarnations.superseded_at IS 'After a crash or a restore: when that was noticed';

-- Rates are kept in memory alone while the meter is open. Here they wait while
-- it is closed.
CREATE TABLE apikeys.rate_marks (
    subject_id uuid NOT NULL,
    is_user boolean NOT NULL,
    name_hash bigint NOT NULL,
    arrival bigint NOT NULL,
    CONSTRAINT rate_marks_pkey PRIMARY KEY (subject_id, name_hash)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.rate_marks', '');

-- Requests that were charged and must not be again. No foreign keys, as above.
CREATE TABLE apikeys.request_ids (
    key_id uuid NOT NULL,
    id_hash bigint NOT NULL,
    charged_at timestamptz NOT NULL,
    CONSTRAINT request_ids_pkey PRIMARY KEY (key_id, id_hash)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.request_ids', '');

CREATE INDEX request_ids_charged_at_idx ON apikeys.request_ids (charged_at);

COMMENT ON TABLE apikeys.request_ids IS 'Requests with a request_id that were charged, for apikeys.request_id_window';
COMMENT ON COLUMN apikeys.request_ids.key_id IS 'The key';
COMMENT ON COLUMN apikeys.request_ids.id_hash IS 'Hash of the request_id';
COMMENT ON COLUMN apikeys.request_ids.charged_at IS 'When the request was charged; -infinity: it was given back';
COMMENT ON INDEX apikeys.request_ids_charged_at_idx IS 'Removal of what is old';

-- So are reservations.
CREATE TABLE apikeys.reservation_marks (
    reservation_id uuid NOT NULL,
    n int NOT NULL,
    key_id uuid NOT NULL,
    max_cost bigint NOT NULL,
    charged_at timestamptz NOT NULL,
    deadline timestamptz NOT NULL,
    subject_id uuid NOT NULL,
    is_user boolean NOT NULL,
    period int NOT NULL,
    period_start bigint NOT NULL,
    amount bigint NOT NULL,
    emission bigint NOT NULL,
    lost bigint NOT NULL,
    CONSTRAINT reservation_marks_pkey PRIMARY KEY (reservation_id, n)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.reservation_marks', '');

COMMENT ON TABLE apikeys.reservation_marks IS 'Reservations held when the meter was last closed, a row for each limit; empty while it is open';
COMMENT ON COLUMN apikeys.reservation_marks.reservation_id IS 'The reservation';
COMMENT ON COLUMN apikeys.reservation_marks.n IS 'Number of the limit, from 0';
COMMENT ON COLUMN apikeys.reservation_marks.key_id IS 'The key that reserved';
COMMENT ON COLUMN apikeys.reservation_marks.max_cost IS 'What is held';
COMMENT ON COLUMN apikeys.reservation_marks.charged_at IS 'When it was reserved';
COMMENT ON COLUMN apikeys.reservation_marks.deadline IS 'When it is given back';
COMMENT ON COLUMN apikeys.reservation_marks.subject_id IS 'Who is metered: keys.id or users.subject_id';
COMMENT ON COLUMN apikeys.reservation_marks.is_user IS 'Whether that is a user';
COMMENT ON COLUMN apikeys.reservation_marks.period IS 'Number of the period''s unit, as the meter keeps it';
COMMENT ON COLUMN apikeys.reservation_marks.period_start IS 'Start of the period in microseconds since 2000, or hash of a rate''s name';
COMMENT ON COLUMN apikeys.reservation_marks.amount IS 'The limit when it was reserved';
COMMENT ON COLUMN apikeys.reservation_marks.emission IS 'Of a rate: ns from one request to the next';
COMMENT ON COLUMN apikeys.reservation_marks.lost IS 'Of credits: charged less current_usage when it was reserved';

COMMENT ON TABLE apikeys.rate_marks IS 'Rates in use when the meter was last closed; empty while it is open';
COMMENT ON COLUMN apikeys.rate_marks.subject_id IS 'Who is metered: keys.id or users.subject_id';
COMMENT ON COLUMN apikeys.rate_marks.is_user IS 'Whether that is a user';
COMMENT ON COLUMN apikeys.rate_marks.name_hash IS 'Hash of the rate''s name';
COMMENT ON COLUMN apikeys.rate_marks.arrival IS 'Theoretical arrival time of the next request, in ns since 2000';

-- A verification that began before its user was erased may reach the history
-- after. Here the worker finds whose addresses it has to clear there.
CREATE TABLE apikeys.erasures (
    key_id uuid NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    noticed_at timestamptz,
    CONSTRAINT erasures_pkey PRIMARY KEY (key_id)
);
SELECT pg_catalog.pg_extension_config_dump('apikeys.erasures', '');

COMMENT ON TABLE apikeys.erasures IS 'Keys of users erased lately, whose late history the worker clears; empty an hour or so after';
COMMENT ON COLUMN apikeys.erasures.key_id IS 'The key';
COMMENT ON COLUMN apikeys.erasures.erased_at IS 'When its user was erased';
COMMENT ON COLUMN apikeys.erasures.noticed_at IS 'When the worker first saw the row; an hour later it is done';

COMMENT ON CONSTRAINT keys_digest_key ON apikeys.keys IS 'A secret belongs to one key';

-- HTTP through PostgREST: the key of a request, who is calling, and which
-- database role that is.

-- Whoever names an http_role lets keys act as it, so it must be a role that
-- this caller could set as well. The caller is not current_user: the functions
-- that write run as their owner. A restored row is left as it is; what it names
-- is checked when it is used.

CREATE FUNCTION apikeys.in_maintenance() RETURNS boolean
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_in_maintenance';
COMMENT ON FUNCTION apikeys.in_maintenance() IS
'Whether a command such as ANALYZE, or autovacuum, is calling for the owner of a table.
session_user is not who has written what is called then.';
REVOKE EXECUTE ON FUNCTION apikeys.in_maintenance() FROM PUBLIC;

CREATE FUNCTION apikeys.check_http_role(http_role text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    found_role pg_roles;
BEGIN
    SELECT r.* INTO found_role FROM pg_roles r WHERE r.rolname = check_http_role.http_role;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role "%" does not exist', check_http_role.http_role
            USING ERRCODE = 'undefined_object', COLUMN = 'http_role',
            HINT = 'http_role is a role of the database, made by CREATE ROLE.';
    END IF;
    IF found_role.rolsuper THEN
        RAISE EXCEPTION 'http_role must not be a superuser'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- An index's function, say: its owner must not have the role of who runs ANALYZE.
    IF apikeys.in_maintenance() THEN
        RAISE EXCEPTION 'http_role cannot be given by what a maintenance command calls'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- PostgreSQL 16 tells who may set a role from who is a member.
    IF NOT pg_has_role(caller, found_role.oid,
            CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        RAISE EXCEPTION 'permission denied to give role "%" as http_role', check_http_role.http_role
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('Only who can set the role can give it; "%s" cannot.', caller);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_http_role(text) IS
'Refuse an http_role that the caller could not set.
Raises 42704 if it does not exist, 22023 for a superuser, 42501 if the caller could not set it, or is not known.';
REVOKE EXECUTE ON FUNCTION apikeys.check_http_role(text) FROM PUBLIC;

-- As its owner, since who may write a table need not have EXECUTE here.
CREATE FUNCTION apikeys.http_role_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    revived boolean := false;
BEGIN
    IF apikeys.in_subscription() THEN
        RETURN NEW;
    END IF;
    IF octet_length(NEW.http_role) NOT BETWEEN 1 AND 63 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'http_role must have between 1 and 63 bytes',
            HINT = 'NULL is none.';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF TG_TABLE_NAME = 'plans' THEN
            revived := OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL;
        END IF;
        IF NEW.http_role <> coalesce(OLD.http_role, '') OR (revived AND NEW.http_role IS NOT NULL) THEN
            PERFORM apikeys.check_http_role(NEW.http_role);
        END IF;
    ELSIF NEW.http_role IS NOT NULL AND NEW.created_at = transaction_timestamp() THEN
        PERFORM apikeys.check_http_role(NEW.http_role);
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.http_role_before_write() IS
'Check the http_role of a plan or an api that is written.
Trigger. A restored row is left as it is, and one that comes by logical replication. Raises as apikeys.check_http_role.';
REVOKE EXECUTE ON FUNCTION apikeys.http_role_before_write() FROM PUBLIC;

CREATE TRIGGER check_http_role BEFORE INSERT OR UPDATE ON apikeys.plans
    FOR EACH ROW EXECUTE FUNCTION apikeys.http_role_before_write();
ALTER TABLE apikeys.plans ENABLE ALWAYS TRIGGER check_http_role;
COMMENT ON TRIGGER check_http_role ON apikeys.plans IS 'Refuses an http_role that the caller could not set';

CREATE TRIGGER check_http_role BEFORE INSERT OR UPDATE ON apikeys.apis
    FOR EACH ROW EXECUTE FUNCTION apikeys.http_role_before_write();
ALTER TABLE apikeys.apis ENABLE ALWAYS TRIGGER check_http_role;
COMMENT ON TRIGGER check_http_role ON apikeys.apis IS 'Refuses an http_role that the caller could not set';

-- No SET clause and not SECURITY DEFINER: the role that it sets must outlast
-- it, and be checked as its caller's.
CREATE FUNCTION @extschema@.apikey_authenticate() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_authenticate';
COMMENT ON FUNCTION @extschema@.apikey_authenticate() IS
'Verify the API key of an HTTP request; the db-pre-request of PostgREST.
Takes the key from the header apikeys.http_header, meters the request, also if
it is a GET, adds rate-limit headers to the answer, and goes on as the http_role
of the key''s plan or api. A refusal is 401, 403 or 429 with the outcome as its
code. Paths in apikeys.http_public_paths pass without a key. Errors: PGRST for a
refusal, 55000 outside a request or for a role that cannot be set, 53000 if the
worker cannot keep up.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_authenticate() FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_verify_http(
    key text,
    endpoint text DEFAULT NULL,
    method text DEFAULT NULL,
    ip_address inet DEFAULT NULL,
    cost bigint DEFAULT 1,
    permissions text DEFAULT NULL,
    api_id text DEFAULT NULL
) RETURNS apikeys.http_answer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_verify_http';
COMMENT ON FUNCTION @extschema@.apikey_verify_http(text, text, text, inet, bigint, text, text) IS
'Verify an API key, and tell what an HTTP server answers.
Decides and meters as apikey_verify, for middleware of a web framework. Always
one row: status (200, 401, 403 or 429), headers (those of the limits; of a
refusal also its type, and when to retry), the body of a refusal, and who is
calling. Errors: those of apikey_verify.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_verify_http(text, text, text, inet, bigint, text, text) FROM PUBLIC;

-- Who is calling.

CREATE TYPE apikeys.current_key AS (
    key_id uuid, api_id text, name text, user_id text, plan_id text,
    permissions text[], metadata jsonb, expires_at timestamptz
);
COMMENT ON TYPE apikeys.current_key IS 'The key that was verified in this transaction';
COMMENT ON COLUMN apikeys.current_key.key_id IS 'The key';
COMMENT ON COLUMN apikeys.current_key.plan_id IS 'The plan that applies; NULL if none does';
COMMENT ON COLUMN apikeys.current_key.permissions IS 'What the key holds by itself, without its roles';

CREATE FUNCTION @extschema@.apikey_current() RETURNS apikeys.current_key
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikey_current';
COMMENT ON FUNCTION @extschema@.apikey_current() IS
'The key that is calling.
The one that apikey_verify or apikey_authenticate found VALID last in this
transaction; NULL if there is none. Held in memory: it costs no look-up and
nothing but a secret can set it. A savepoint that is rolled back takes it back.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_current() FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_current_user() RETURNS text
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikey_current_user';
COMMENT ON FUNCTION @extschema@.apikey_current_user() IS
'The user of the key that is calling, for row security.
USING (owner = apikey_current_user()). NULL if no key is, or it has no user; see
apikey_current.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_current_user() FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_current_key() RETURNS uuid
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikey_current_key';
COMMENT ON FUNCTION @extschema@.apikey_current_key() IS
'The id of the key that is calling.
NULL if none is; see apikey_current.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_current_key() FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_current_permissions() RETURNS text[]
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikey_current_permissions';
COMMENT ON FUNCTION @extschema@.apikey_current_permissions() IS
'The permissions of the key that is calling.
What it holds by itself, without its roles. NULL if no key is calling; see
apikey_current.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_current_permissions() FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_current_metadata() RETURNS jsonb
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikey_current_metadata';
COMMENT ON FUNCTION @extschema@.apikey_current_metadata() IS
'The metadata of the key that is calling.
NULL if none is; see apikey_current.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_current_metadata() FROM PUBLIC;

-- What PostgREST shows of the extension itself.

CREATE SCHEMA apikeys_http;
COMMENT ON SCHEMA apikeys_http IS
'API keys
Manage and verify API keys. Lists are JSON arrays; the header Content-Range tells the total.';

CREATE FUNCTION apikeys_http.apikey_check(permissions text DEFAULT NULL,
    cost bigint DEFAULT 1, api_id text DEFAULT NULL, auth_request boolean DEFAULT false)
RETURNS json
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_check';
COMMENT ON FUNCTION apikeys_http.apikey_check(text, bigint, text, boolean) IS
'Verify the API key of a request that a gateway guards.
Reads the key from the header apikeys.http_header, path and method from
X-Original-URI and X-Original-Method. The status is 200, 401, 403 or 429, the
headers are those that the gateway''s answer should have; X-Api-Key-Id and
X-Api-Key-User tell who is calling. With auth_request, which is for nginx, 429 is
sent as 403; X-Api-Key-Status tells. Errors: 22023 for arguments, 55000 outside a
request, 53000 if the worker cannot keep up.';
REVOKE EXECUTE ON FUNCTION apikeys_http.apikey_check(text, bigint, text, boolean) FROM PUBLIC;

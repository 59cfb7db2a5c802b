-- Privileges. Nothing is executable by PUBLIC and no table is granted;
-- apikey_grant hands out four sets of functions. It runs with the rights of
-- its caller, who must be able to grant them.

CREATE FUNCTION @extschema@.apikey_grant(role text, privileges text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asking CONSTANT text[] := '{apikey_current, apikey_current_user,
        apikey_current_key, apikey_current_permissions, apikey_current_metadata}';
    verifying CONSTANT text[] := asking || '{apikey_verify, apikey_verify_many,
        apikey_verify_http, apikey_reserve, apikey_settle, apikey_whoami, apikey_authenticate,
        apikey_check}'::text[];
    viewing CONSTANT text[] := '{apikey_get, apikey_list, apikey_count,
        apikey_usage, apikey_requests, apikey_plan_get, apikey_plan_list,
        apikey_plan_usage, apikey_user_get, apikey_user_list,
        apikey_user_usage, apikey_user_requests, apikey_role_list,
        apikey_limit_list, apikey_ledger, apikey_user_ledger, apikey_usage_series,
        apikey_user_usage_series, apikey_metrics, apikey_dashboard}';
    managing CONSTANT text[] := viewing || '{apikey_create, apikey_update,
        apikey_delete, apikey_restore, apikey_regenerate, apikey_plan_create,
        apikey_plan_update, apikey_plan_delete, apikey_user_create,
        apikey_user_update, apikey_user_delete, apikey_role_create,
        apikey_role_update, apikey_role_delete, apikey_limit_set,
        apikey_limit_delete, apikey_credits, apikey_user_credits,
        apikey_usage_adjust, apikey_revoke, apikey_erase_user, apikey_fence,
        apikey_unfence}'::text[];
    wanted text[] := CASE apikey_grant.privileges
        WHEN 'application' THEN asking
        WHEN 'verifier' THEN verifying
        WHEN 'viewer' THEN viewing
        WHEN 'manager' THEN managing
    END;
    callee regprocedure;
BEGIN
    IF wanted IS NULL THEN
        RAISE EXCEPTION 'unknown set of privileges "%"', apikey_grant.privileges
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'The sets are "application", "verifier", "viewer" and "manager".';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = apikey_grant.role) THEN
        RAISE EXCEPTION 'role "%" does not exist', apikey_grant.role
            USING ERRCODE = 'undefined_object';
    END IF;

    -- By membership of the extension: a stranger's function of the same name
    -- is not handed out.
    FOR callee IN
        SELECT p.oid
          FROM pg_extension e
          JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass
                          AND d.refobjid = e.oid
                          AND d.classid = 'pg_proc'::regclass
                          AND d.deptype = 'e'
          JOIN pg_proc p ON p.oid = d.objid
         WHERE e.extname = 'apikeys' AND p.proname = ANY (wanted)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', callee, apikey_grant.role);
    END LOOP;

    -- To name the types of what the functions return.
    EXECUTE format('GRANT USAGE ON SCHEMA apikeys TO %I', apikey_grant.role);
    IF apikey_grant.privileges <> 'application' THEN
        EXECUTE format('GRANT USAGE ON SCHEMA apikeys_http TO %I', apikey_grant.role);
    END IF;
    IF NOT has_schema_privilege(apikey_grant.role, '@extschema@'::regnamespace, 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA @extschema@ TO %I', apikey_grant.role);
    END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_grant(text, text) IS
'Grant a role what it needs.
"application" may ask who is calling; "verifier" may also verify; "viewer" may read keys, plans, users, roles, usage and history; "manager" may also create, change, regenerate and delete. A role may hold several. No set reads a table or sees a digest. REVOKE takes back what was granted; apikey_revoke does not, it deletes keys.
Raises 42704 for an unknown role, 22023 for an unknown set.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_grant(text, text) FROM PUBLIC;

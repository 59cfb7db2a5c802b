-- Plans. What a plan may say is checked by its trigger, for the functions and
-- for plain INSERT and UPDATE alike.

CREATE TYPE apikeys.plan_usage_report AS (
    plan_id text, keys bigint, users bigint, current_usage bigint,
    "limit" bigint, period text
);
COMMENT ON TYPE apikeys.plan_usage_report IS 'Live usage of a plan in the current period';
COMMENT ON COLUMN apikeys.plan_usage_report.plan_id IS 'The plan';
COMMENT ON COLUMN apikeys.plan_usage_report.keys IS 'Keys not deleted that name the plan as their own';
COMMENT ON COLUMN apikeys.plan_usage_report.users IS 'Users not deleted who have the plan';
COMMENT ON COLUMN apikeys.plan_usage_report.current_usage IS 'Consumed under the plan by all keys and users, each in its current period';
COMMENT ON COLUMN apikeys.plan_usage_report."limit" IS 'Quota of one key or user; NULL is unlimited';
COMMENT ON COLUMN apikeys.plan_usage_report.period IS 'Unit of the period';

CREATE FUNCTION @extschema@.apikey_plan_create(name text, max_requests bigint = NULL,
    request_period text = 'month', plan_id text = NULL, description text = NULL,
    is_active boolean = true, metadata jsonb = '{}', key_lifetime interval = NULL,
    max_keys_per_user int = NULL, http_role text = NULL)
RETURNS apikeys.plan_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_id text := coalesce(apikey_plan_create.plan_id, apikeys.uuidv7()::text);
    given apikeys.plans;
BEGIN
    PERFORM apikeys.check_not_null(json_build_object(
        'name', apikey_plan_create.name,
        'request_period', apikey_plan_create.request_period,
        'is_active', apikey_plan_create.is_active));
    given.id := new_id;
    given.name := apikey_plan_create.name;
    given.description := apikey_plan_create.description;
    given.max_requests := nullif(apikey_plan_create.max_requests, -1);
    given.request_period := apikey_plan_create.request_period;
    given.is_active := apikey_plan_create.is_active;
    given.key_lifetime := apikey_plan_create.key_lifetime;
    given.max_keys_per_user := apikey_plan_create.max_keys_per_user;
    given.metadata := coalesce(apikey_plan_create.metadata, '{}');
    given.http_role := apikey_plan_create.http_role;
    PERFORM apikeys.check_plan_values(given);

    INSERT INTO apikeys.plans AS p (id, name, description, max_requests,
        request_period, is_active, key_lifetime, max_keys_per_user, metadata,
        http_role)
    VALUES (given.id, given.name, given.description, given.max_requests,
        given.request_period, given.is_active, given.key_lifetime,
        given.max_keys_per_user, given.metadata, given.http_role)
    ON CONFLICT ON CONSTRAINT plans_pkey DO UPDATE
       SET name = excluded.name,
           description = excluded.description,
           max_requests = excluded.max_requests,
           request_period = excluded.request_period,
           is_active = excluded.is_active,
           key_lifetime = excluded.key_lifetime,
           max_keys_per_user = excluded.max_keys_per_user,
           metadata = excluded.metadata,
           http_role = excluded.http_role,
           created_at = excluded.created_at,
           deleted_at = NULL
     WHERE p.deleted_at IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'plan "%" already exists', new_id
            USING ERRCODE = 'unique_violation',
            HINT = 'Use apikey_plan_update to change it.';
    END IF;
    RETURN (SELECT p FROM apikeys.plan_objects p WHERE p.id = new_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_create(text, bigint, text, text, text, boolean, jsonb, interval, int, text) IS
'Create a plan.
max_requests is the quota per request_period (minute, hour, day, week, month or year); NULL or -1 is unlimited. plan_id defaults to a uuid; the id of a deleted plan revives it with the new values. key_lifetime is how long a new key lives, max_keys_per_user how many a user may hold; NULL is no limit. http_role is the database role that requests over HTTP run as, one that the caller could set.
Raises 23505 if the plan exists, 22023 or 22004 for a value that cannot be, 42704 or 42501 for an http_role that does not exist or may not be given.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_create(text, bigint, text, text, text, boolean, jsonb, interval, int, text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_plan_get(plan_id text) RETURNS SETOF apikeys.plan_objects
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
SELECT p.* FROM apikeys.plan_objects p WHERE p.id = apikey_plan_get.plan_id
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_get(text) IS
'Get a plan by its id.
A deleted plan is shown, with deleted_at, until it is purged; an unknown id gives no row.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_get(text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_plan_list(page_size int = 100, page_offset int = 0,
    include_deleted boolean = false)
RETURNS SETOF apikeys.plan_objects
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_page(apikey_plan_list.page_size, apikey_plan_list.page_offset);
    RETURN QUERY
        SELECT p.* FROM apikeys.plan_objects p
         WHERE apikey_plan_list.include_deleted OR p.deleted_at IS NULL
         ORDER BY p.id
         LIMIT apikey_plan_list.page_size OFFSET apikey_plan_list.page_offset;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_list(int, int, boolean) IS
'List plans by id.
A page holds page_size plans, at most 1,000.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_list(int, int, boolean) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_plan_update(plan_id text, patch jsonb) RETURNS apikeys.plan_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed apikeys.plans;
BEGIN
    PERFORM apikeys.check_patch(apikey_plan_update.patch,
        '{"name": "label", "description": "string?", "max_requests": "bigint?",
          "request_period": "string", "is_active": "boolean",
          "key_lifetime": "interval?", "max_keys_per_user": "int?",
          "metadata": "object?", "http_role": "string?",
          "id": "!It never changes.",
          "created_at": "!It is set when the plan is made.",
          "updated_at": "!It is kept by a trigger.",
          "deleted_at": "!Use apikey_plan_delete() or apikey_plan_create()."}');

    SELECT p.* INTO changed FROM apikeys.plans p
     WHERE p.id = apikey_plan_update.plan_id AND p.deleted_at IS NULL
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('plan', apikey_plan_update.plan_id);
    END IF;

    changed := jsonb_populate_record(changed, apikey_plan_update.patch);
    changed.max_requests := nullif(changed.max_requests, -1);
    changed.metadata := coalesce(changed.metadata, '{}');
    PERFORM apikeys.check_plan_values(changed);
    UPDATE apikeys.plans p
       SET name = changed.name,
           description = changed.description,
           max_requests = changed.max_requests,
           request_period = changed.request_period,
           is_active = changed.is_active,
           key_lifetime = changed.key_lifetime,
           max_keys_per_user = changed.max_keys_per_user,
           metadata = changed.metadata,
           http_role = changed.http_role
     WHERE p.id = apikey_plan_update.plan_id;
    RETURN (SELECT p FROM apikeys.plan_objects p WHERE p.id = apikey_plan_update.plan_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_update(text, jsonb) IS
'Change a plan.
patch gives the fields to set: name, description, max_requests, request_period, is_active, key_lifetime, max_keys_per_user, metadata (replaced whole), http_role. Absent fields keep their values; null clears one (metadata becomes empty). The new limits hold for the current period at once; another request_period starts a new count.
Raises P0002 for an unknown or deleted plan; 22023 for an unknown field or a wrong value; 23502 for a null in name, request_period or is_active; 42704 or 42501 for an http_role that does not exist or may not be given.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_update(text, jsonb) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_plan_delete(plan_id text) RETURNS apikeys.plan_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE apikeys.plans p SET deleted_at = now()
     WHERE p.id = apikey_plan_delete.plan_id AND p.deleted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('plan', apikey_plan_delete.plan_id);
    END IF;
    RETURN (SELECT p FROM apikeys.plan_objects p WHERE p.id = apikey_plan_delete.plan_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_delete(text) IS
'Delete a plan.
The keys to which it applies are refused from the moment of the commit on; the row stays, marked, until apikey_purge.
Raises P0002 for an unknown or deleted plan.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_delete(text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_plan_usage(plan_id text) RETURNS apikeys.plan_usage_report
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    report apikeys.plan_usage_report;
BEGIN
    SELECT p.id,
           (SELECT count(*) FROM apikeys.keys k
             WHERE k.plan_id = p.id AND k.deleted_at IS NULL),
           (SELECT count(*) FROM apikeys.users u
             WHERE u.plan_id = p.id AND u.deleted_at IS NULL),
           (SELECT coalesce(sum(l.current_usage), 0) FROM apikeys.live_usage l
             WHERE l.plan_id = p.id AND l.period = p.request_period
               AND l.reset_time > clock_timestamp()),
           p.max_requests,
           p.request_period
      INTO report
      FROM apikeys.plans p
     WHERE p.id = apikey_plan_usage.plan_id;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('plan', apikey_plan_usage.plan_id);
    END IF;
    RETURN report;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_plan_usage(text) IS
'Show how much is consumed under a plan.
keys and users say who has the plan, current_usage what they have consumed in their current periods together; limit holds for each of them.
Raises P0002 for an unknown plan.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_plan_usage(text) FROM PUBLIC;

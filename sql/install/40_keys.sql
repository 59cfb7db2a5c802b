-- Keys: reading and changing them. Creating, regenerating and verifying are C.
--
-- The functions run with their owner's rights: EXECUTE is the gate, tables are
-- granted to nobody. So each pins search_path and qualifies every name; its
-- parameters are written with the function's name, since a column's would win.

-- Checks that several functions share.

CREATE FUNCTION apikeys.check_page(page_size int, page_offset int) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (page_size BETWEEN 1 AND 1000) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'page_size must be between 1 and 1000',
            HINT = 'Ask for further pages to get more.';
    END IF;
    IF (page_offset >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'page_offset must not be negative';
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_page(int, int) IS
'Refuse a page that cannot be given.
Raises 22023 unless page_size is between 1 and 1,000 and page_offset is at least 0.';
REVOKE EXECUTE ON FUNCTION apikeys.check_page(int, int) FROM PUBLIC;

-- The arguments are json, not jsonb, to keep their order.
CREATE FUNCTION apikeys.check_not_null(arguments json) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing text := (SELECT a.name
                       FROM json_each_text(arguments) WITH ORDINALITY AS a(name, value, place)
                      WHERE a.value IS NULL
                      ORDER BY a.place
                      LIMIT 1);
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION '% must not be null', missing
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_not_null(json) IS
'Refuse NULL for arguments that must be given.
Raises 22004 for the first of them.';
REVOKE EXECUTE ON FUNCTION apikeys.check_not_null(json) FROM PUBLIC;

CREATE FUNCTION apikeys.check_metadata_filter(metadata jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(metadata) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'metadata must be a JSON object',
            HINT = 'Rows are found whose metadata contains the object given.';
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_metadata_filter(jsonb) IS
'Refuse a metadata filter that is no JSON object.
Raises 22023; NULL is no filter.';
REVOKE EXECUTE ON FUNCTION apikeys.check_metadata_filter(jsonb) FROM PUBLIC;

-- What was deleted is not there for those who change something, but its row is.
CREATE FUNCTION apikeys.refuse_unknown(kind text, id text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remedy text;
BEGIN
    IF id IS NULL THEN
        RAISE EXCEPTION '% of the % must not be null',
            CASE WHEN kind IN ('role', 'limit') THEN 'name' ELSE 'id' END, kind
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    CASE kind
        WHEN 'key' THEN
            SELECT CASE WHEN k.erased_at IS NULL THEN 'apikey_restore() undoes that.'
                        ELSE 'Its user was erased: make a new key with apikey_create().' END
              INTO remedy
              FROM apikeys.keys k
             WHERE k.id = refuse_unknown.id::uuid AND k.deleted_at IS NOT NULL;
        WHEN 'plan' THEN
            SELECT 'apikey_plan_create() revives it.'
              INTO remedy
              FROM apikeys.plans p
             WHERE p.id = refuse_unknown.id AND p.deleted_at IS NOT NULL;
        WHEN 'user' THEN
            SELECT 'apikey_user_create() revives it.'
              INTO remedy
              FROM apikeys.users u
             WHERE u.id = refuse_unknown.id AND u.deleted_at IS NOT NULL;
        ELSE
            NULL;
    END CASE;
    IF remedy IS NOT NULL THEN
        RAISE EXCEPTION '% "%" does not exist', kind, id
            USING ERRCODE = 'no_data_found',
            DETAIL = 'It was deleted.', HINT = remedy;
    END IF;
    RAISE EXCEPTION '% "%" does not exist', kind, id
        USING ERRCODE = 'no_data_found';
END
$$;
COMMENT ON FUNCTION apikeys.refuse_unknown(text, text) IS
'Say that something does not exist.
Raises P0002, or 22004 for an id that is NULL. Of a key, a plan and a user that is marked as deleted it says so, and how to undo that.';
REVOKE EXECUTE ON FUNCTION apikeys.refuse_unknown(text, text) FROM PUBLIC;

CREATE FUNCTION apikeys.check_plan(plan_id text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF check_plan.plan_id IS NULL OR EXISTS
        (SELECT FROM apikeys.plans p
          WHERE p.id = check_plan.plan_id AND p.deleted_at IS NULL) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM apikeys.plans p WHERE p.id = check_plan.plan_id) THEN
        PERFORM apikeys.refuse_unknown('plan', check_plan.plan_id);
    END IF;
    RAISE EXCEPTION 'plan "%" does not exist', check_plan.plan_id
        USING ERRCODE = 'no_data_found',
        HINT = 'Make it with apikey_plan_create().';
END
$$;
COMMENT ON FUNCTION apikeys.check_plan(text) IS
'Refuse a plan that does not exist or is deleted.
Raises P0002; NULL is no plan.';
REVOKE EXECUTE ON FUNCTION apikeys.check_plan(text) FROM PUBLIC;

CREATE FUNCTION apikeys.check_user(user_id text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM apikeys.users u
                WHERE u.id = check_user.user_id AND u.deleted_at IS NOT NULL) THEN
        PERFORM apikeys.refuse_unknown('user', check_user.user_id);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_user(text) IS
'Refuse a user that is deleted.
Raises P0002; one without a row is a user too, and NULL is none.';
REVOKE EXECUTE ON FUNCTION apikeys.check_user(text) FROM PUBLIC;

CREATE FUNCTION apikeys.check_roles(roles text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unknown text := (SELECT n.name
                       FROM unnest(check_roles.roles) WITH ORDINALITY AS n(name, place)
                      WHERE NOT EXISTS (SELECT FROM apikeys.roles r WHERE r.name = n.name)
                      ORDER BY n.place
                      LIMIT 1);
BEGIN
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'role "%" does not exist', unknown
            USING ERRCODE = 'no_data_found',
            HINT = 'Make it with apikey_role_create().';
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_roles(text[]) IS
'Refuse roles that do not exist.
Raises P0002 for the first of them; NULL is no role.';
REVOKE EXECUTE ON FUNCTION apikeys.check_roles(text[]) FROM PUBLIC;

-- The fields are json, not jsonb, to keep the order in which the hint names
-- them. A value is never repeated in a message: it might be a secret.
CREATE FUNCTION apikeys.check_patch(patch jsonb, fields json) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    field text;
    value jsonb;
    kind text;
    given text;
    fits boolean;
BEGIN
    IF (jsonb_typeof(patch) = 'object') IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'patch must be a JSON object',
            HINT = 'Give the fields to set by name, such as {"name": "new name"}.';
    END IF;

    FOR field, value IN SELECT e.key, e.value FROM jsonb_each(patch) e LOOP
        kind := fields ->> field;
        IF kind IS NULL THEN
            RAISE EXCEPTION 'unknown field "%"', field
                USING ERRCODE = 'invalid_parameter_value',
                HINT = format('Fields that can be set: %s.',
                              (SELECT string_agg(format('"%s"', f.key), ', ')
                                 FROM json_each_text(fields) f
                                WHERE f.value NOT LIKE '!%'));
        END IF;
        IF kind LIKE '!%' THEN
            RAISE EXCEPTION 'field "%" cannot be set', field
                USING ERRCODE = 'invalid_parameter_value',
                HINT = substr(kind, 2);
        END IF;

        given := jsonb_typeof(value);
        IF given = 'null' THEN
            CONTINUE WHEN kind LIKE '%?';
            RAISE EXCEPTION 'field "%" must not be null', field
                USING ERRCODE = 'not_null_violation';
        END IF;
        kind := rtrim(kind, '?');

        BEGIN
            fits := CASE kind
                WHEN 'string' THEN given = 'string'
                WHEN 'label' THEN given = 'string'
                    AND length(value #>> '{}') BETWEEN 1 AND 255
                WHEN 'id' THEN given = 'string'
                    AND octet_length(value #>> '{}') BETWEEN 1 AND 255
                WHEN 'boolean' THEN given = 'boolean'
                WHEN 'object' THEN given = 'object'
                WHEN 'int' THEN given = 'number'
                    AND (value #>> '{}')::int IS NOT NULL
                WHEN 'bigint' THEN given = 'number'
                    AND (value #>> '{}')::bigint IS NOT NULL
                WHEN 'time' THEN given = 'string'
                    AND (value #>> '{}')::timestamptz IS NOT NULL
                WHEN 'interval' THEN given = 'string'
                    AND (value #>> '{}')::interval IS NOT NULL
                WHEN 'strings' THEN
                    (SELECT count(*) = 0 FROM jsonb_array_elements(value) e
                      WHERE jsonb_typeof(e.value) <> 'string')
                WHEN 'networks' THEN
                    (SELECT count(*) = 0 FROM jsonb_array_elements(value) e
                      WHERE jsonb_typeof(e.value) <> 'string'
                         OR (e.value #>> '{}')::cidr IS NULL)
            END;
        EXCEPTION WHEN data_exception THEN
            fits := false;
        END;
        IF fits IS NOT TRUE THEN
            RAISE EXCEPTION 'invalid value for field "%"', field
                USING ERRCODE = 'invalid_parameter_value',
                HINT = format('The field takes %s.', CASE kind
                    WHEN 'string' THEN 'a string'
                    WHEN 'label' THEN 'a string of 1 to 255 characters'
                    WHEN 'id' THEN 'a string of 1 to 255 bytes'
                    WHEN 'boolean' THEN 'true or false'
                    WHEN 'object' THEN 'an object'
                    WHEN 'int' THEN 'a whole number of 32 bits'
                    WHEN 'bigint' THEN 'a whole number of 64 bits'
                    WHEN 'time' THEN 'a date and time, such as "2030-01-31T12:00:00Z"'
                    WHEN 'interval' THEN 'an interval, such as "30 days"'
                    WHEN 'strings' THEN 'an array of strings'
                    WHEN 'networks' THEN 'an array of IP networks, such as ["10.0.0.0/8"]'
                    END);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION apikeys.check_patch(jsonb, json) IS
'Refuse a patch with an unknown field or a wrong value.
fields gives the kind of each settable field (string, label, id, boolean, object, int, bigint, time, interval, strings or networks), followed by ? where null clears it; of a field that the object has but that cannot be set, ! and what to do instead.
Raises 22023, or 23502 for a null that is not allowed; names the field.';
REVOKE EXECUTE ON FUNCTION apikeys.check_patch(jsonb, json) FROM PUBLIC;

-- Only the conditions that are asked for, so that each combination gets the
-- plan that its indexes allow.
CREATE FUNCTION apikeys.key_conditions(user_id text, plan_id text, api_id text,
    metadata jsonb, after uuid, include_deleted boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT concat_ws(' AND ', 'true',
    CASE WHEN key_conditions.user_id IS NOT NULL THEN 'k.user_id = $1' END,
    CASE WHEN key_conditions.plan_id IS NOT NULL THEN 'k.plan_id = $2' END,
    CASE WHEN key_conditions.api_id IS NOT NULL THEN 'k.api_id = $3' END,
    CASE WHEN key_conditions.metadata IS NOT NULL THEN 'k.metadata @> $4' END,
    CASE WHEN key_conditions.after IS NOT NULL THEN 'k.id > $5' END,
    CASE WHEN key_conditions.include_deleted IS NOT TRUE THEN 'k.deleted_at IS NULL' END)
$$;
COMMENT ON FUNCTION apikeys.key_conditions(text, text, text, jsonb, uuid, boolean) IS
'Conditions on keys k for a filter, as SQL.
The arguments are its parameters $1 to $5 and are not part of the text; NULL is no condition.';
REVOKE EXECUTE ON FUNCTION apikeys.key_conditions(text, text, text, jsonb, uuid, boolean) FROM PUBLIC;

-- Reading.

CREATE FUNCTION @extschema@.apikey_get(id uuid) RETURNS SETOF apikeys.key_objects
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
SELECT k.* FROM apikeys.key_objects k WHERE k.id = apikey_get.id
$$;
COMMENT ON FUNCTION @extschema@.apikey_get(uuid) IS
'Get a key by its id.
A deleted key is shown with the status "deleted" until it is purged; an unknown id gives no row.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_get(uuid) FROM PUBLIC;

-- plpgsql, not sql: the look-up is by the latest snapshot, so the row is
-- fetched by a statement that begins after it.
CREATE FUNCTION @extschema@.apikey_whoami(key text) RETURNS SETOF apikeys.key_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_id uuid := apikeys.key_of_secret(apikey_whoami.key);
BEGIN
    RETURN QUERY SELECT k.* FROM apikeys.key_objects k WHERE k.id = found_id;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_whoami(text) IS
'Get a key by its secret.
Meters nothing and records nothing; a secret that is unknown, or whose key was deleted, gives no row. A disabled or expired key is shown with that status, and in a REPEATABLE READ transaction as of its snapshot. That is no check: to decide about a request, call apikey_verify, with cost => 0 to charge nothing.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_whoami(text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_list(user_id text = NULL, plan_id text = NULL,
    api_id text = NULL, metadata jsonb = NULL, page_size int = 100,
    page_offset int = 0, after uuid = NULL, include_deleted boolean = false)
RETURNS SETOF apikeys.key_objects
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_page(apikey_list.page_size, apikey_list.page_offset);
    PERFORM apikeys.check_metadata_filter(apikey_list.metadata);
    RETURN QUERY EXECUTE 'SELECT k.* FROM apikeys.key_objects k WHERE '
        || apikeys.key_conditions(apikey_list.user_id, apikey_list.plan_id,
                                  apikey_list.api_id, apikey_list.metadata,
                                  apikey_list.after, apikey_list.include_deleted)
        || ' ORDER BY k.id LIMIT $6 OFFSET $7'
        USING apikey_list.user_id, apikey_list.plan_id, apikey_list.api_id,
              apikey_list.metadata, apikey_list.after, apikey_list.page_size,
              apikey_list.page_offset;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_list(text, text, text, jsonb, int, int, uuid, boolean) IS
'List keys, oldest first.
user_id, plan_id (the key''s own) and api_id select by equality, metadata by containment; NULL is no filter. A page holds page_size keys, at most 1,000; the next one is asked for with after, the last id seen, which stays fast however far one goes, or with page_offset.
Raises 22023 for a page or a filter that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_list(text, text, text, jsonb, int, int, uuid, boolean) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_count(user_id text = NULL, plan_id text = NULL,
    api_id text = NULL, metadata jsonb = NULL, include_deleted boolean = false)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total bigint;
BEGIN
    PERFORM apikeys.check_metadata_filter(apikey_count.metadata);
    EXECUTE 'SELECT count(*) FROM apikeys.keys k WHERE '
        || apikeys.key_conditions(apikey_count.user_id, apikey_count.plan_id,
                                  apikey_count.api_id, apikey_count.metadata,
                                  NULL, apikey_count.include_deleted)
        INTO total
        USING apikey_count.user_id, apikey_count.plan_id, apikey_count.api_id,
              apikey_count.metadata;
    RETURN total;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_count(text, text, text, jsonb, boolean) IS
'Count keys.
The filters are those of apikey_list.
Raises 22023 for metadata that is no object.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_count(text, text, text, jsonb, boolean) FROM PUBLIC;

-- Most pages are of the last days. A plan for all days opens only the partitions
-- of a span: so the last day is looked at first, then a week, then the rest.
-- A page ends with all requests of its last microsecond, or the next one would
-- leave some out.
CREATE FUNCTION @extschema@.apikey_requests(id uuid, page_size int = 100, before timestamptz = NULL)
RETURNS SETOF apikeys.requests
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    upper timestamptz := coalesce(apikey_requests.before, 'infinity');
    newest timestamptz := greatest(least(upper, now()), '2000-01-01 00:00+00');
    lower timestamptz;
    past interval;
    missing int := apikey_requests.page_size;
    found_now int;
BEGIN
    PERFORM apikeys.check_page(apikey_requests.page_size, 0);
    FOREACH past IN ARRAY ARRAY['1 day', '8 days', NULL]::interval[] LOOP
        lower := coalesce(newest - past, '-infinity');
        RETURN QUERY
            SELECT r.* FROM apikeys.requests r
             WHERE r.key_id = apikey_requests.id
               AND r."timestamp" >= lower AND r."timestamp" < upper
             ORDER BY r."timestamp" DESC
             FETCH FIRST (missing) ROWS WITH TIES;
        GET DIAGNOSTICS found_now = ROW_COUNT;
        missing := missing - found_now;
        EXIT WHEN missing <= 0;
        upper := least(upper, lower);
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_requests(uuid, int, timestamptz) IS
'List the requests made with a key, newest first.
A page holds page_size requests, at most 1,000, and any more of the same microsecond as its last; the next one is asked for with before, the last timestamp seen. A request appears within two intervals of apikeys.flush_interval; an unknown id gives no row.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_requests(uuid, int, timestamptz) FROM PUBLIC;

-- Changing.

CREATE FUNCTION @extschema@.apikey_update(id uuid, patch jsonb) RETURNS apikeys.key_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed apikeys.keys;
BEGIN
    PERFORM apikeys.check_patch(apikey_update.patch,
        '{"name": "label", "user_id": "id?", "plan_id": "id?",
          "api_id": "id", "enabled": "boolean", "permissions": "strings?",
          "allowed_ips": "networks?", "metadata": "object?",
          "expires_at": "time?", "roles": "strings?",
          "refill_amount": "bigint?", "refill_every": "interval?",
          "refill_day": "int?",
          "id": "!It never changes.",
          "status": "!Set \"enabled\" or \"expires_at\", or use apikey_delete().",
          "start": "!Use apikey_regenerate().",
          "created_at": "!It is set when the key is made.",
          "updated_at": "!It is kept by a trigger.",
          "last_used_at": "!It is written by the worker.",
          "deleted_at": "!Use apikey_delete() or apikey_restore().",
          "regenerated_at": "!Use apikey_regenerate().",
          "previous_expires_at": "!Use apikey_regenerate().",
          "credits": "!Use apikey_credits().",
          "fenced_at": "!Use apikey_fence() or apikey_unfence()."}');

    SELECT k.* INTO changed FROM apikeys.keys k
     WHERE k.id = apikey_update.id AND k.deleted_at IS NULL
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('key', apikey_update.id::text);
    END IF;

    PERFORM apikeys.check_plan(apikey_update.patch ->> 'plan_id');
    IF apikey_update.patch ->> 'user_id' IS DISTINCT FROM changed.user_id THEN
        PERFORM apikeys.check_user(apikey_update.patch ->> 'user_id');
    END IF;
    IF apikey_update.patch ? 'api_id' AND NOT EXISTS
        (SELECT FROM apikeys.apis a
          WHERE a.id = apikey_update.patch ->> 'api_id') THEN
        RAISE EXCEPTION 'api "%" does not exist', apikey_update.patch ->> 'api_id'
            USING ERRCODE = 'no_data_found',
            HINT = 'Insert a row into apikeys.apis first.';
    END IF;

    changed := jsonb_populate_record(changed, apikey_update.patch);
    IF apikey_update.patch ? 'roles' THEN
        PERFORM apikeys.check_roles(changed.roles);
    END IF;
    UPDATE apikeys.keys k
       SET name = changed.name,
           user_id = changed.user_id,
           plan_id = changed.plan_id,
           api_id = changed.api_id,
           enabled = changed.enabled,
           permissions = coalesce(changed.permissions, '{}'),
           allowed_ips = changed.allowed_ips,
           metadata = coalesce(changed.metadata, '{}'),
           expires_at = changed.expires_at,
           roles = coalesce(changed.roles, '{}'),
           refill_amount = changed.refill_amount,
           refill_every = changed.refill_every,
           refill_day = changed.refill_day
     WHERE k.id = apikey_update.id;
    RETURN (SELECT k FROM apikeys.key_objects k WHERE k.id = apikey_update.id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_update(uuid, jsonb) IS
'Change a key.
patch gives the fields to set: name, user_id, plan_id, api_id, enabled, permissions, allowed_ips, metadata (replaced whole), expires_at, roles, refill_amount, refill_every, refill_day (credits are for apikey_credits). Absent fields keep their values; null clears one (permissions, metadata and roles become empty).
Raises P0002 for an unknown or deleted key, for a plan, api or role that does not exist, and for a user who was deleted; 22023 for an unknown field or a wrong value; 23502 for a null in name, api_id or enabled.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_update(uuid, jsonb) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_delete(id uuid) RETURNS apikeys.key_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE apikeys.keys k SET deleted_at = now()
     WHERE k.id = apikey_delete.id AND k.deleted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('key', apikey_delete.id::text);
    END IF;
    RETURN (SELECT k FROM apikeys.key_objects k WHERE k.id = apikey_delete.id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_delete(uuid) IS
'Delete a key.
It is refused from the moment of the commit on and hidden from lists; the row stays, marked, until apikey_purge.
Raises P0002 for an unknown or deleted key.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_delete(uuid) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_restore(id uuid) RETURNS apikeys.key_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM apikeys.keys k
                WHERE k.id = apikey_restore.id AND k.erased_at IS NOT NULL) THEN
        RAISE EXCEPTION 'key "%" belonged to a user who was erased', apikey_restore.id
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Make a new key with apikey_create().';
    END IF;
    UPDATE apikeys.keys k SET deleted_at = NULL
     WHERE k.id = apikey_restore.id AND k.deleted_at IS NOT NULL;
    IF NOT FOUND THEN
        IF apikey_restore.id IS NULL THEN
            PERFORM apikeys.refuse_unknown('key', NULL);
        END IF;
        IF EXISTS (SELECT FROM apikeys.keys k WHERE k.id = apikey_restore.id) THEN
            RAISE EXCEPTION 'key "%" is not deleted', apikey_restore.id
                USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        RAISE EXCEPTION 'key "%" does not exist', apikey_restore.id
            USING ERRCODE = 'no_data_found',
            HINT = 'A key can be restored until apikey_purge removes it.';
    END IF;
    RETURN (SELECT k FROM apikeys.key_objects k WHERE k.id = apikey_restore.id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_restore(uuid) IS
'Undo the deletion of a key.
It works again with the secret it had, unless it is disabled or expired.
Raises P0002 for a key that is unknown or purged; 55000 for one that is not deleted, or whose user was erased.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_restore(uuid) FROM PUBLIC;

-- Users. What a user's row may say is checked by its trigger, for the
-- functions and for plain INSERT and UPDATE alike.

CREATE FUNCTION @extschema@.apikey_user_create(user_id text, name text = NULL,
    email text = NULL, plan_id text = NULL, custom_start timestamptz = NULL,
    metadata jsonb = '{}')
RETURNS apikeys.user_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    violated text;
    given apikeys.users;
BEGIN
    PERFORM apikeys.check_not_null(json_build_object('user_id', apikey_user_create.user_id));
    given.id := apikey_user_create.user_id;
    given.email := apikey_user_create.email;
    given.custom_start := apikey_user_create.custom_start;
    given.metadata := coalesce(apikey_user_create.metadata, '{}');
    PERFORM apikeys.check_user_values(given);
    PERFORM apikeys.check_plan(apikey_user_create.plan_id);

    -- subject_id stays: to be deleted and made again is no way to a new quota.
    INSERT INTO apikeys.users AS u (id, name, email, plan_id, custom_start, metadata)
    VALUES (apikey_user_create.user_id, apikey_user_create.name,
        apikey_user_create.email, apikey_user_create.plan_id,
        apikey_user_create.custom_start, given.metadata)
    ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE
       SET name = excluded.name,
           email = excluded.email,
           plan_id = excluded.plan_id,
           custom_start = excluded.custom_start,
           is_disabled = false,
           metadata = excluded.metadata,
           created_at = excluded.created_at,
           deleted_at = NULL,
           erased_at = NULL
     WHERE u.deleted_at IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'user "%" already exists', apikey_user_create.user_id
            USING ERRCODE = 'unique_violation',
            HINT = 'Use apikey_user_update to change it.';
    END IF;
    RETURN (SELECT u FROM apikeys.user_objects u WHERE u.id = apikey_user_create.user_id);
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
    IF violated = 'users_email_key' THEN
        RAISE EXCEPTION 'a user with the email "%" already exists', apikey_user_create.email
            USING ERRCODE = 'unique_violation', CONSTRAINT = violated,
            HINT = 'An email belongs to one user, whatever its case.';
    END IF;
    RAISE;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_create(text, text, text, text, timestamptz, jsonb) IS
'Create a user.
user_id is the application''s own id, as keys name it. The keys of the user that have no plan of their own share the quota of plan_id; custom_start anchors the user''s periods, NULL is the calendar in UTC. The id of a deleted user revives it with the new values; what it consumed stays consumed.
Raises 23505 if the user or the email exists, P0002 for an unknown plan, 22023 or 22004 for a value that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_create(text, text, text, text, timestamptz, jsonb) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_get(user_id text) RETURNS SETOF apikeys.user_objects
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
SELECT u.* FROM apikeys.user_objects u WHERE u.id = apikey_user_get.user_id
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_get(text) IS
'Get a user by its id.
A deleted user is shown, with deleted_at, until it is purged; an unknown id gives no row.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_get(text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_list(plan_id text = NULL, metadata jsonb = NULL,
    page_size int = 100, page_offset int = 0, include_deleted boolean = false)
RETURNS SETOF apikeys.user_objects
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_page(apikey_user_list.page_size, apikey_user_list.page_offset);
    PERFORM apikeys.check_metadata_filter(apikey_user_list.metadata);
    RETURN QUERY EXECUTE 'SELECT u.* FROM apikeys.user_objects u WHERE '
        || concat_ws(' AND ', 'true',
            CASE WHEN apikey_user_list.plan_id IS NOT NULL THEN 'u.plan_id = $1' END,
            CASE WHEN apikey_user_list.metadata IS NOT NULL THEN 'u.metadata @> $2' END,
            CASE WHEN apikey_user_list.include_deleted IS NOT TRUE THEN 'u.deleted_at IS NULL' END)
        || ' ORDER BY u.id LIMIT $3 OFFSET $4'
        USING apikey_user_list.plan_id, apikey_user_list.metadata,
              apikey_user_list.page_size, apikey_user_list.page_offset;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_list(text, jsonb, int, int, boolean) IS
'List users by id.
plan_id selects by equality, metadata by containment; NULL is no filter. A page holds page_size users, at most 1,000.
Raises 22023 for a page or a filter that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_list(text, jsonb, int, int, boolean) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_update(user_id text, patch jsonb) RETURNS apikeys.user_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed apikeys.users;
    violated text;
BEGIN
    PERFORM apikeys.check_patch(apikey_user_update.patch,
        '{"name": "string?", "email": "string?", "plan_id": "id?",
          "custom_start": "time?", "is_disabled": "boolean",
          "metadata": "object?", "refill_amount": "bigint?",
          "refill_every": "interval?", "refill_day": "int?",
          "id": "!It never changes.",
          "created_at": "!It is set when the user is made.",
          "updated_at": "!It is kept by a trigger.",
          "deleted_at": "!Use apikey_user_delete() or apikey_user_create().",
          "erased_at": "!Use apikey_erase_user().",
          "credits": "!Use apikey_user_credits()."}');

    SELECT u.* INTO changed FROM apikeys.users u
     WHERE u.id = apikey_user_update.user_id AND u.deleted_at IS NULL
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('user', apikey_user_update.user_id);
    END IF;

    PERFORM apikeys.check_plan(apikey_user_update.patch ->> 'plan_id');

    changed := jsonb_populate_record(changed, apikey_user_update.patch);
    changed.metadata := coalesce(changed.metadata, '{}');
    PERFORM apikeys.check_user_values(changed);
    UPDATE apikeys.users u
       SET name = changed.name,
           email = changed.email,
           plan_id = changed.plan_id,
           custom_start = changed.custom_start,
           is_disabled = changed.is_disabled,
           metadata = changed.metadata,
           refill_amount = changed.refill_amount,
           refill_every = changed.refill_every,
           refill_day = changed.refill_day
     WHERE u.id = apikey_user_update.user_id;
    RETURN (SELECT u FROM apikeys.user_objects u WHERE u.id = apikey_user_update.user_id);
EXCEPTION WHEN unique_violation THEN
    GET STACKED DIAGNOSTICS violated = CONSTRAINT_NAME;
    IF violated = 'users_email_key' THEN
        RAISE EXCEPTION 'a user with the email "%" already exists', changed.email
            USING ERRCODE = 'unique_violation', CONSTRAINT = violated,
            HINT = 'An email belongs to one user, whatever its case.';
    END IF;
    RAISE;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_update(text, jsonb) IS
'Change a user.
patch gives the fields to set: name, email, plan_id, custom_start, is_disabled, metadata (replaced whole), refill_amount, refill_every, refill_day (credits are for apikey_user_credits). Absent fields keep their values; null clears one (metadata becomes empty). Another custom_start moves the bounds of the periods, so a new count may start.
Raises P0002 for an unknown or deleted user and for an unknown plan; 23505 for an email that another user has; 22023 for an unknown field or a wrong value; 23502 for a null in is_disabled.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_update(text, jsonb) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_delete(user_id text) RETURNS apikeys.user_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE apikeys.users u SET deleted_at = now()
     WHERE u.id = apikey_user_delete.user_id AND u.deleted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('user', apikey_user_delete.user_id);
    END IF;
    RETURN (SELECT u FROM apikeys.user_objects u WHERE u.id = apikey_user_delete.user_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_delete(text) IS
'Delete a user.
The user''s keys are refused from the moment of the commit on; the row stays, marked, until apikey_purge, but its email is free at once.
Raises P0002 for an unknown or deleted user.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_delete(text) FROM PUBLIC;

-- A page from each key by its index, then the newest of those: the work is
-- bounded by the number of keys, however long their histories are.
-- By spans, as apikey_requests.
CREATE FUNCTION @extschema@.apikey_user_requests(user_id text, page_size int = 100,
    before timestamptz = NULL)
RETURNS SETOF apikeys.requests
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    upper timestamptz := coalesce(apikey_user_requests.before, 'infinity');
    newest timestamptz := greatest(least(upper, now()), '2000-01-01 00:00+00');
    lower timestamptz;
    past interval;
    missing int := apikey_user_requests.page_size;
    found_now int;
BEGIN
    PERFORM apikeys.check_page(apikey_user_requests.page_size, 0);
    FOREACH past IN ARRAY ARRAY['1 day', '8 days', NULL]::interval[] LOOP
        lower := coalesce(newest - past, '-infinity');
        RETURN QUERY
            SELECT r.* FROM apikeys.keys k
             CROSS JOIN LATERAL
                   (SELECT h.* FROM apikeys.requests h
                     WHERE h.key_id = k.id
                       AND h."timestamp" >= lower AND h."timestamp" < upper
                     ORDER BY h."timestamp" DESC
                     FETCH FIRST (missing) ROWS WITH TIES) r
             WHERE k.user_id = apikey_user_requests.user_id
             ORDER BY r."timestamp" DESC
             FETCH FIRST (missing) ROWS WITH TIES;
        GET DIAGNOSTICS found_now = ROW_COUNT;
        missing := missing - found_now;
        EXIT WHEN missing <= 0;
        upper := least(upper, lower);
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_requests(text, int, timestamptz) IS
'List the requests made with the keys of a user, newest first.
Deleted keys count until they are purged. A page holds page_size requests, at most 1,000, and any more of the same microsecond as its last; the next one is asked for with before, the last timestamp seen. An unknown id gives no row.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_requests(text, int, timestamptz) FROM PUBLIC;

-- For operators: revoking many keys at once, and erasing a person.

CREATE FUNCTION apikeys.check_key_filter(user_id text, plan_id text, api_id text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF check_key_filter.user_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM apikeys.users u WHERE u.id = check_key_filter.user_id)
        AND NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.user_id = check_key_filter.user_id) THEN
        PERFORM apikeys.refuse_unknown('user', check_key_filter.user_id);
    END IF;
    IF check_key_filter.plan_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM apikeys.plans p WHERE p.id = check_key_filter.plan_id) THEN
        PERFORM apikeys.refuse_unknown('plan', check_key_filter.plan_id);
    END IF;
    IF check_key_filter.api_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM apikeys.apis a WHERE a.id = check_key_filter.api_id) THEN
        PERFORM apikeys.refuse_unknown('api', check_key_filter.api_id);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_key_filter(text, text, text) IS
'Refuse a filter that names what does not exist.
Deleted users and plans exist, and so does a user whom only keys name. Raises P0002; NULL is no filter.';
REVOKE EXECUTE ON FUNCTION apikeys.check_key_filter(text, text, text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_revoke(user_id text = NULL, plan_id text = NULL,
    api_id text = NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    revoked bigint;
BEGIN
    -- A variable that happens to be empty must not revoke every key.
    IF num_nonnulls(apikey_revoke.user_id, apikey_revoke.plan_id, apikey_revoke.api_id) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'nothing says which keys to revoke',
            HINT = 'Give at least one of user_id, plan_id and api_id.';
    END IF;

    PERFORM apikeys.check_key_filter(apikey_revoke.user_id, apikey_revoke.plan_id,
                                     apikey_revoke.api_id);

    -- Rows are locked in order, so that two such calls do not deadlock.
    EXECUTE 'UPDATE apikeys.keys SET deleted_at = now() FROM (SELECT k.id FROM apikeys.keys k WHERE '
        || apikeys.key_conditions(apikey_revoke.user_id, apikey_revoke.plan_id,
                                  apikey_revoke.api_id, NULL, NULL, false)
        || ' ORDER BY k.id FOR NO KEY UPDATE) live WHERE keys.id = live.id'
        USING apikey_revoke.user_id, apikey_revoke.plan_id, apikey_revoke.api_id;
    GET DIAGNOSTICS revoked = ROW_COUNT;
    RETURN revoked;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_revoke(text, text, text) IS
'Delete all keys of a user, of a plan or of an api.
Of several filters all must apply; plan_id is the key''s own plan. The keys are refused from the moment of the commit on, as with apikey_delete; all have the same deleted_at, and apikey_restore undoes it key by key. New keys can be made: to lock a user or a plan out, disable it. It has nothing to do with apikey_grant, whose sets REVOKE takes back. Returns how many keys were deleted.
Raises 22023 without any filter; P0002 for an unknown plan or api, and for a user with neither a row nor a key.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_revoke(text, text, text) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_erase_user(user_id text) RETURNS apikeys.user_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key_ids uuid[];
BEGIN
    key_ids := ARRAY(SELECT k.id FROM apikeys.keys k
                      WHERE k.user_id = apikey_erase_user.user_id
                      ORDER BY k.id FOR NO KEY UPDATE);

    -- A user known by keys alone is given a row, which says what happened.
    INSERT INTO apikeys.users AS u (id, deleted_at, erased_at)
    SELECT apikey_erase_user.user_id, now(), now()
     WHERE key_ids <> '{}'
        OR EXISTS (SELECT FROM apikeys.users o WHERE o.id = apikey_erase_user.user_id)
    ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE
       SET name = NULL,
           email = NULL,
           metadata = '{}',
           deleted_at = coalesce(u.deleted_at, now()),
           erased_at = coalesce(u.erased_at, now());
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('user', apikey_erase_user.user_id);
    END IF;

    -- A key deleted after its expiry would still be answered EXPIRED, and go
    -- on to be recorded with addresses.
    UPDATE apikeys.keys k
       SET name = 'erased',
           metadata = '{}',
           allowed_ips = NULL,
           expires_at = CASE WHEN k.expires_at > coalesce(k.deleted_at, now())
                             THEN k.expires_at END,
           deleted_at = coalesce(k.deleted_at, now()),
           erased_at = coalesce(k.erased_at, now())
     WHERE k.id = ANY (key_ids);

    UPDATE apikeys.requests r SET ip_address = NULL
     WHERE r.key_id = ANY (key_ids) AND r.ip_address IS NOT NULL;

    -- What is on its way to the history is left to the worker.
    INSERT INTO apikeys.erasures (key_id)
    SELECT id FROM unnest(key_ids) id
    ON CONFLICT ON CONSTRAINT erasures_pkey DO UPDATE
       SET erased_at = excluded.erased_at, noticed_at = NULL;

    RETURN (SELECT u FROM apikeys.user_objects u WHERE u.id = apikey_erase_user.user_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_erase_user(text) IS
'Erase a person, and keep the totals.
Clears the user''s name, email and metadata, the name, metadata and allowed_ips of all keys of the user, and ip_address in their history; deletes user and keys for good (the keys cannot be restored). The user''s id, the usage, and endpoint and tags of the history stay: an application that puts personal data there clears it itself. Requests that were still on their way to the history lose their addresses at the worker''s next sweep (apikeys.sweep_interval). A second call does the same again. apikey_user_create makes the user anew, without the old keys.
Raises P0002 for a user with neither a row nor a key.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_erase_user(text) FROM PUBLIC;

-- After a restore to an earlier time: secrets that were revoked or replaced
-- since are good again, and nothing in the database says which. A fence refuses
-- all of them until they are replaced.
--
-- It is a mark on the key, not a change of "enabled": a key that is disabled
-- while it is fenced stays so when it gets a new secret.

CREATE FUNCTION @extschema@.apikey_fence(user_id text = NULL, plan_id text = NULL,
    api_id text = NULL, all_keys boolean = false, issued_before timestamptz = NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    fenced bigint;
BEGIN
    PERFORM apikeys.check_fence_filter('fence', apikey_fence.all_keys,
        num_nonnulls(apikey_fence.user_id, apikey_fence.plan_id, apikey_fence.api_id) > 0);
    PERFORM apikeys.check_key_filter(apikey_fence.user_id, apikey_fence.plan_id,
                                     apikey_fence.api_id);

    -- Deleted keys too: apikey_restore would bring an old secret back. Rows are
    -- locked in order, as apikey_revoke does.
    EXECUTE 'UPDATE apikeys.keys SET fenced_at = now() FROM (SELECT k.id FROM apikeys.keys k WHERE '
        || apikeys.key_conditions(apikey_fence.user_id, apikey_fence.plan_id,
                                  apikey_fence.api_id, NULL, NULL, true)
        || ' AND k.fenced_at IS NULL AND k.erased_at IS NULL'
        || CASE WHEN apikey_fence.issued_before IS NULL THEN ''
           ELSE ' AND (coalesce(k.regenerated_at, k.created_at) < $4'
                ' OR k.previous_expires_at > clock_timestamp())' END
        || ' ORDER BY k.id FOR NO KEY UPDATE) open WHERE keys.id = open.id'
        USING apikey_fence.user_id, apikey_fence.plan_id, apikey_fence.api_id,
              apikey_fence.issued_before;
    GET DIAGNOSTICS fenced = ROW_COUNT;
    RETURN fenced;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_fence(text, text, text, boolean, timestamptz) IS
'Refuse secrets until they are replaced.
Fences the keys of a user, of a plan (the key''s own plan_id) or of an api; of several filters all must apply; all_keys takes every key. Those that are deleted, disabled or expired are fenced too. With issued_before, keys are spared whose secrets were all made at or after that moment. A fenced key is answered DISABLED from the moment of the commit on, whatever its enabled says, until apikey_regenerate gives it a new secret or apikey_unfence lifts the fence. All have the same fenced_at; updated_at stays. Returns how many keys were fenced, without those that were before.
Raises 22023 without any filter, or with all_keys and another; P0002 for an unknown plan or api, and for a user with neither a row nor a key.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_fence(text, text, text, boolean, timestamptz) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_unfence(ids uuid[] = NULL, user_id text = NULL,
    plan_id text = NULL, api_id text = NULL, all_keys boolean = false)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unknown record;
    lifted bigint;
BEGIN
    PERFORM apikeys.check_fence_filter('lift a fence from', apikey_unfence.all_keys,
        num_nonnulls(apikey_unfence.ids, apikey_unfence.user_id,
                     apikey_unfence.plan_id, apikey_unfence.api_id) > 0);
    PERFORM apikeys.check_key_filter(apikey_unfence.user_id, apikey_unfence.plan_id,
                                     apikey_unfence.api_id);
    SELECT i.id INTO unknown
      FROM unnest(apikey_unfence.ids) WITH ORDINALITY i(id, place)
      LEFT JOIN apikeys.keys k ON k.id = i.id
     WHERE k.id IS NULL
     ORDER BY i.place
     LIMIT 1;
    IF FOUND THEN
        PERFORM apikeys.refuse_unknown('key', unknown.id::text);
    END IF;

    EXECUTE 'UPDATE apikeys.keys SET fenced_at = NULL FROM (SELECT k.id FROM apikeys.keys k WHERE '
        || apikeys.key_conditions(apikey_unfence.user_id, apikey_unfence.plan_id,
                                  apikey_unfence.api_id, NULL, NULL, true)
        || ' AND k.fenced_at IS NOT NULL'
        || CASE WHEN apikey_unfence.ids IS NULL THEN '' ELSE ' AND k.id = ANY ($4)' END
        || ' ORDER BY k.id FOR NO KEY UPDATE) fenced WHERE keys.id = fenced.id'
        USING apikey_unfence.user_id, apikey_unfence.plan_id, apikey_unfence.api_id,
              apikey_unfence.ids;
    GET DIAGNOSTICS lifted = ROW_COUNT;
    RETURN lifted;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_unfence(uuid[], text, text, text, boolean) IS
'Lift the fence of keys: their secrets are good again.
Of the keys named, or of a user, of a plan (the key''s own plan_id), of an api, or with all_keys of every key; of several filters all must apply. What apikey_fence has spared, and what was disabled or deleted, stays as it is. Returns how many fences were lifted.
Raises 22023 without any filter, or with all_keys and another; P0002 for an unknown key, plan or api, and for a user with neither a row nor a key; 22004 for a NULL among the ids.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_unfence(uuid[], text, text, text, boolean) FROM PUBLIC;

CREATE FUNCTION apikeys.check_fence_filter(verb text, all_keys boolean, has_filter boolean) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A variable that happens to be empty must not mean every key.
    IF all_keys IS NOT TRUE AND NOT has_filter THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('nothing says which keys to %s', verb),
            HINT = 'Say which, or all_keys => true for every key of the database.';
    END IF;
    IF all_keys AND has_filter THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'all_keys cannot be combined with a filter',
            HINT = 'Leave one of them out.';
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_fence_filter(text, boolean, boolean) IS
'Refuse to fence, or lift fences, without saying of which keys.
Raises 22023.';
REVOKE EXECUTE ON FUNCTION apikeys.check_fence_filter(text, boolean, boolean) FROM PUBLIC;

CREATE VIEW apikeys.fences AS
SELECT k.fenced_at, k.api_id,
       count(*) FILTER (WHERE k.deleted_at IS NULL) AS keys,
       count(k.deleted_at) AS deleted_keys
  FROM apikeys.keys k
 WHERE k.fenced_at IS NOT NULL
 GROUP BY k.fenced_at, k.api_id;
COMMENT ON VIEW apikeys.fences IS 'How many keys are still fenced, by fence and api';
COMMENT ON COLUMN apikeys.fences.fenced_at IS 'When they were fenced';
COMMENT ON COLUMN apikeys.fences.api_id IS 'The api that they open';
COMMENT ON COLUMN apikeys.fences.keys IS 'How many are fenced and not deleted';
COMMENT ON COLUMN apikeys.fences.deleted_keys IS 'How many are fenced and deleted';

-- Rates. What a rate may say is checked by the table's trigger, for the
-- functions and for plain INSERT and UPDATE alike.

CREATE FUNCTION apikeys.check_limit_values(given apikeys.limits) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
BEGIN
    refusal := CASE
        WHEN octet_length(given.name) NOT BETWEEN 1 AND 63
            OR given.name IN ('quota', 'credits', 'request_id') THEN
            ARRAY[format('invalid name of a limit "%s"', left(given.name, 63)),
                  'A name has 1 to 63 bytes and is none of "quota", "credits" and "request_id".']
        WHEN num_nonnulls(given.plan_id, given.user_id, given.key_id) <> 1 THEN
            ARRAY['a limit must belong to exactly one of a plan, a user and a key',
                  'Give one of plan_id, user_id and key_id.']
        WHEN given.amount < 1 THEN
            ARRAY['amount must be at least 1', 'It is the number of requests per period.']
        WHEN given.burst < 1 THEN
            ARRAY['burst must be at least 1', 'It is the number of requests that may come at once.']
        WHEN given.period <= '0' THEN
            ARRAY['period must be positive', 'It is the interval for which amount is given.']
        WHEN extract(year FROM given.period) <> 0 OR extract(month FROM given.period) <> 0 THEN
            ARRAY['period must not contain months',
                  'Give it in days or shorter units.',
                  'period']
        WHEN NOT apikeys.is_rate(given.amount, given.period, given.burst) THEN
            ARRAY['rate cannot be computed with',
                  'There is at most one request a nanosecond, and the burst fills within a century.']
    END;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = refusal[1], HINT = refusal[2], COLUMN = coalesce(refusal[3], '');
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_limit_values(apikeys.limits) IS
'Refuse values that a limit cannot have.
Raises 22023.';
REVOKE EXECUTE ON FUNCTION apikeys.check_limit_values(apikeys.limits) FROM PUBLIC;

CREATE FUNCTION apikeys.limits_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.burst := coalesce(NEW.burst, NEW.amount);
    PERFORM apikeys.check_limit_values(NEW);
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.plan_id, NEW.user_id, NEW.key_id) IS DISTINCT FROM
           (OLD.plan_id, OLD.user_id, OLD.key_id) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'owner of a limit cannot be changed';
        END IF;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.limits_before_write() IS
'Check a limit that is written, and note when it is changed.
Trigger. A burst that is not given is the amount. Raises 22023 for a value that cannot be, 55000 for a change of owner.';
REVOKE EXECUTE ON FUNCTION apikeys.limits_before_write() FROM PUBLIC;

CREATE TRIGGER before_write BEFORE INSERT OR UPDATE ON apikeys.limits
    FOR EACH ROW EXECUTE FUNCTION apikeys.limits_before_write();
COMMENT ON TRIGGER before_write ON apikeys.limits IS 'Checks values and sets updated_at';

CREATE FUNCTION apikeys.burst_follows_amount() RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'apikeys_burst_follows_amount';
COMMENT ON FUNCTION apikeys.burst_follows_amount() IS
'Trigger: a burst that is the amount stays so when the amount is changed.
Unless the statement sets burst as well.';
REVOKE EXECUTE ON FUNCTION apikeys.burst_follows_amount() FROM PUBLIC;

-- The name sorts before before_write, which checks what comes out.
CREATE TRIGGER amount_before_write BEFORE UPDATE OF amount ON apikeys.limits
    FOR EACH ROW EXECUTE FUNCTION apikeys.burst_follows_amount();
COMMENT ON TRIGGER amount_before_write ON apikeys.limits IS 'Keeps a burst that equals the amount at the amount';

-- A verification holds all limits of a request at once: their number is bound.
-- Keys carry a mark, so that those without limits need no look-up. The owner's
-- row is always updated, so that two sessions that change the limits of one
-- owner wait for each other, and one with an older snapshot fails (40001)
-- rather than count without the other's. A restored row only locks it: the
-- owner's own row is restored as it was.
CREATE FUNCTION apikeys.limits_after_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner apikeys.limits := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    is_restored CONSTANT boolean := TG_OP = 'INSERT' AND owner.created_at <> now();
    others bigint;
BEGIN
    IF owner.key_id IS NOT NULL THEN
        UPDATE apikeys.keys k SET has_limits = true WHERE k.id = owner.key_id;
        SELECT count(*) INTO others FROM apikeys.limits l WHERE l.key_id = owner.key_id;
        IF others = 0 THEN
            UPDATE apikeys.keys k SET has_limits = false WHERE k.id = owner.key_id;
        END IF;
    ELSIF owner.user_id IS NOT NULL THEN
        IF is_restored THEN
            PERFORM FROM apikeys.users u WHERE u.id = owner.user_id FOR UPDATE;
        ELSE
            UPDATE apikeys.users u SET updated_at = now() WHERE u.id = owner.user_id;
        END IF;
        SELECT count(*) INTO others FROM apikeys.limits l WHERE l.user_id = owner.user_id;
    ELSE
        IF is_restored THEN
            PERFORM FROM apikeys.plans p WHERE p.id = owner.plan_id FOR UPDATE;
        ELSE
            UPDATE apikeys.plans p SET updated_at = now() WHERE p.id = owner.plan_id;
        END IF;
        SELECT count(*) INTO others FROM apikeys.limits l WHERE l.plan_id = owner.plan_id;
    END IF;
    IF TG_OP = 'INSERT' AND others > 8 THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
            MESSAGE = 'a plan, user or key can have at most 8 limits';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION apikeys.limits_after_write() IS
'Hold the number of limits of an owner to 8, and keep keys.has_limits.
Trigger. Raises 54000.';
REVOKE EXECUTE ON FUNCTION apikeys.limits_after_write() FROM PUBLIC;

CREATE TRIGGER after_write AFTER INSERT OR DELETE ON apikeys.limits
    FOR EACH ROW EXECUTE FUNCTION apikeys.limits_after_write();
ALTER TABLE apikeys.limits ENABLE ALWAYS TRIGGER after_write;
COMMENT ON TRIGGER after_write ON apikeys.limits IS 'Bounds the number of limits and keeps keys.has_limits';

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON apikeys.limits
    FOR EACH ROW EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.limits ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.limits IS 'Makes the change durable and known to all sessions';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.limits
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.limits ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.limits IS 'Keys are marked by their limits';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.rate_marks
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.rate_marks ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.rate_marks IS 'The meter depends on its durable side';

CREATE VIEW apikeys.limit_objects AS
SELECT l.id, l.plan_id, l.user_id, l.key_id, l.name, l.amount, l.period,
       l.burst, l.auto_apply, l.created_at, l.updated_at
  FROM apikeys.limits l;
COMMENT ON VIEW apikeys.limit_objects IS 'Rates as the functions show them';

CREATE FUNCTION apikeys.check_limit_owner(plan_id text, user_id text, key_id uuid) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF num_nonnulls(check_limit_owner.plan_id, check_limit_owner.user_id,
                    check_limit_owner.key_id) <> 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a limit must belong to exactly one of a plan, a user and a key',
            HINT = 'Give one of plan_id, user_id and key_id.';
    END IF;
    PERFORM apikeys.check_plan(check_limit_owner.plan_id);
    IF check_limit_owner.user_id IS NOT NULL AND NOT EXISTS
        (SELECT FROM apikeys.users u
          WHERE u.id = check_limit_owner.user_id AND u.deleted_at IS NULL) THEN
        PERFORM apikeys.refuse_unknown('user', check_limit_owner.user_id);
    END IF;
    IF check_limit_owner.key_id IS NOT NULL AND NOT EXISTS
        (SELECT FROM apikeys.keys k
          WHERE k.id = check_limit_owner.key_id AND k.deleted_at IS NULL) THEN
        PERFORM apikeys.refuse_unknown('key', check_limit_owner.key_id::text);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_limit_owner(text, text, uuid) IS
'Refuse an owner of a limit that does not exist.
Raises 22023 unless one of the three is given, P0002 if it is unknown or deleted.';
REVOKE EXECUTE ON FUNCTION apikeys.check_limit_owner(text, text, uuid) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_limit_set(name text, amount bigint, period interval,
    burst bigint = NULL, auto_apply boolean = true, plan_id text = NULL,
    user_id text = NULL, key_id uuid = NULL)
RETURNS apikeys.limit_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_id uuid;
    given apikeys.limits;
BEGIN
    PERFORM apikeys.check_not_null(json_build_object(
        'name', apikey_limit_set.name,
        'amount', apikey_limit_set.amount,
        'period', apikey_limit_set.period,
        'auto_apply', apikey_limit_set.auto_apply));
    PERFORM apikeys.check_limit_owner(apikey_limit_set.plan_id,
        apikey_limit_set.user_id, apikey_limit_set.key_id);
    given.plan_id := apikey_limit_set.plan_id;
    given.user_id := apikey_limit_set.user_id;
    given.key_id := apikey_limit_set.key_id;
    given.name := apikey_limit_set.name;
    given.amount := apikey_limit_set.amount;
    given.period := apikey_limit_set.period;
    given.burst := coalesce(apikey_limit_set.burst, apikey_limit_set.amount);
    PERFORM apikeys.check_limit_values(given);

    UPDATE apikeys.limits l
       SET amount = apikey_limit_set.amount,
           period = apikey_limit_set.period,
           burst = given.burst,
           auto_apply = apikey_limit_set.auto_apply
     WHERE l.name = apikey_limit_set.name
       AND (l.plan_id = apikey_limit_set.plan_id
            OR l.user_id = apikey_limit_set.user_id
            OR l.key_id = apikey_limit_set.key_id)
    RETURNING l.id INTO found_id;
    IF NOT FOUND THEN
        INSERT INTO apikeys.limits AS l (plan_id, user_id, key_id, name, amount,
            period, burst, auto_apply)
        VALUES (apikey_limit_set.plan_id, apikey_limit_set.user_id,
            apikey_limit_set.key_id, apikey_limit_set.name,
            apikey_limit_set.amount, apikey_limit_set.period,
            given.burst, apikey_limit_set.auto_apply)
        RETURNING l.id INTO found_id;
    END IF;
    RETURN (SELECT l FROM apikeys.limit_objects l WHERE l.id = found_id);
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_limit_set(text, bigint, interval, bigint, boolean, text, text, uuid) IS
'Set a rate of a plan, a user or a key.
amount requests per period, and burst at once (amount if not given); a rate of that name is replaced and goes on where it stands. With auto_apply false it applies only to requests whose charges name it.
Raises P0002 for an unknown owner, 22023 or 22004 for a value that cannot be, 54000 for a ninth limit of one owner.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_limit_set(text, bigint, interval, bigint, boolean, text, text, uuid) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_limit_list(plan_id text = NULL, user_id text = NULL, key_id uuid = NULL)
RETURNS SETOF apikeys.limit_objects
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 8
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_limit_owner(apikey_limit_list.plan_id,
        apikey_limit_list.user_id, apikey_limit_list.key_id);
    RETURN QUERY
        SELECT l.* FROM apikeys.limit_objects l
         WHERE l.plan_id = apikey_limit_list.plan_id
            OR l.user_id = apikey_limit_list.user_id
            OR l.key_id = apikey_limit_list.key_id
         ORDER BY l.name;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_limit_list(text, text, uuid) IS
'List the rates that a plan, a user or a key sets, by name.
Raises P0002 for an unknown owner, 22023 unless one is given.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_limit_list(text, text, uuid) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_limit_delete(name text, plan_id text = NULL, user_id text = NULL, key_id uuid = NULL)
RETURNS apikeys.limit_objects
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone apikeys.limit_objects;
BEGIN
    PERFORM apikeys.check_limit_owner(apikey_limit_delete.plan_id,
        apikey_limit_delete.user_id, apikey_limit_delete.key_id);
    DELETE FROM apikeys.limits l
     WHERE l.name = apikey_limit_delete.name
       AND (l.plan_id = apikey_limit_delete.plan_id
            OR l.user_id = apikey_limit_delete.user_id
            OR l.key_id = apikey_limit_delete.key_id)
    RETURNING l.id, l.plan_id, l.user_id, l.key_id, l.name, l.amount, l.period,
              l.burst, l.auto_apply, l.created_at, l.updated_at INTO gone;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('limit', apikey_limit_delete.name);
    END IF;
    RETURN gone;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_limit_delete(text, text, text, uuid) IS
'Delete a rate of a plan, a user or a key, by its name.
Raises P0002 for an unknown owner or limit, 22023 unless one owner is given.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_limit_delete(text, text, text, uuid) FROM PUBLIC;

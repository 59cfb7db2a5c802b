-- Triggers.
--
-- The rows of a restore pass through them too and must come out as they went
-- in: on INSERT nothing is changed here but what no stored row can hold (-1).
-- What must hold for whoever writes, a role with session_replication_role
-- included, is ENABLE ALWAYS.

-- Plans, users and roles: proper messages for what the table's constraints refuse,
-- and the time of the last change. The functions check values before their
-- statements too, so that an error does not come with the statement as its context.
-- The triggers run with their owner's rights: who may write to a table need not be
-- granted the functions that check it.

CREATE FUNCTION apikeys.check_plan_values(given apikeys.plans) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
BEGIN
    refusal := CASE
        WHEN octet_length(given.id) NOT BETWEEN 1 AND 255 THEN
            ARRAY['id of a plan must have between 1 and 255 bytes',
                  'Without an id, a plan is given a uuid.']
        WHEN length(given.name) NOT BETWEEN 1 AND 255 THEN
            ARRAY['name of a plan must have between 1 and 255 characters',
                  'The description may be longer.']
        WHEN given.max_requests < 0 THEN
            ARRAY['max_requests must not be negative',
                  '-1 or NULL is unlimited.']
        WHEN given.request_period NOT IN ('minute', 'hour', 'day', 'week', 'month', 'year') THEN
            ARRAY[format('unknown request_period "%s"', left(given.request_period, 63)),
                  'The periods are "minute", "hour", "day", "week", "month" and "year".']
        WHEN given.key_lifetime <= '0' THEN
            ARRAY['key_lifetime must be positive',
                  'NULL is for ever.']
        WHEN given.key_lifetime > interval '10000 years' THEN
            ARRAY['key_lifetime must not be longer than 10000 years',
                  'NULL is for ever.']
        WHEN given.max_keys_per_user < 0 THEN
            ARRAY['max_keys_per_user must not be negative',
                  'NULL is any number.']
        WHEN jsonb_typeof(given.metadata) <> 'object' THEN
            ARRAY['metadata must be a JSON object',
                  'Use {} for none.']
    END;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = refusal[1], HINT = refusal[2];
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_plan_values(apikeys.plans) IS
'Refuse values that a plan cannot have.
Raises 22023.';
REVOKE EXECUTE ON FUNCTION apikeys.check_plan_values(apikeys.plans) FROM PUBLIC;

CREATE FUNCTION apikeys.plans_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.max_requests = -1 THEN
        NEW.max_requests := NULL;
    END IF;

    PERFORM apikeys.check_plan_values(NEW);

    IF TG_OP = 'UPDATE' THEN
        IF NEW.id <> OLD.id THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'column "id" of a plan cannot be changed';
        END IF;
        -- A revived plan is a new one.
        IF NEW.created_at <> OLD.created_at
            AND NOT (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'column "created_at" of a plan cannot be changed';
        END IF;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.plans_before_write() IS
'Check a plan that is written, and note when it is changed.
Trigger. Turns max_requests -1 into NULL. Raises 22023 for a value that cannot be, 55000 for a change of id or created_at.';
REVOKE EXECUTE ON FUNCTION apikeys.plans_before_write() FROM PUBLIC;

CREATE TRIGGER before_write BEFORE INSERT OR UPDATE ON apikeys.plans
    FOR EACH ROW EXECUTE FUNCTION apikeys.plans_before_write();
COMMENT ON TRIGGER before_write ON apikeys.plans IS 'Checks values and sets updated_at';

CREATE FUNCTION apikeys.check_user_values(given apikeys.users) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
BEGIN
    refusal := CASE
        WHEN octet_length(given.id) NOT BETWEEN 1 AND 255 THEN
            ARRAY['id of a user must have between 1 and 255 bytes',
                  'Use the id by which the application knows the user.']
        WHEN given.email !~ '^[^@[:space:]]+@[^@[:space:]]+$' THEN
            ARRAY['invalid email',
                  'An email has one "@" and no white space, such as "name@example.com".']
        WHEN NOT isfinite(given.custom_start) THEN
            ARRAY['custom_start must be finite',
                  'NULL is the calendar in UTC.']
        WHEN jsonb_typeof(given.metadata) <> 'object' THEN
            ARRAY['metadata must be a JSON object',
                  'Use {} for none.']
    END;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = refusal[1], HINT = refusal[2];
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.check_user_values(apikeys.users) IS
'Refuse values that a user cannot have.
Raises 22023.';
REVOKE EXECUTE ON FUNCTION apikeys.check_user_values(apikeys.users) FROM PUBLIC;

CREATE FUNCTION apikeys.users_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_user_values(NEW);

    IF TG_OP = 'UPDATE' THEN
        IF NEW.id <> OLD.id OR NEW.subject_id <> OLD.subject_id THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'columns "id" and "subject_id" of a user cannot be changed';
        END IF;
        -- A revived user is a new one.
        IF NEW.created_at <> OLD.created_at
            AND NOT (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'column "created_at" of a user cannot be changed';
        END IF;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.users_before_write() IS
'Check a user that is written, and note when it is changed.
Trigger. Raises 22023 for a value that cannot be, 55000 for a change of id, subject_id or created_at.';
REVOKE EXECUTE ON FUNCTION apikeys.users_before_write() FROM PUBLIC;

CREATE TRIGGER before_write BEFORE INSERT OR UPDATE ON apikeys.users
    FOR EACH ROW EXECUTE FUNCTION apikeys.users_before_write();
COMMENT ON TRIGGER before_write ON apikeys.users IS 'Checks values and sets updated_at';

CREATE FUNCTION apikeys.roles_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
BEGIN
    refusal := CASE
        WHEN octet_length(NEW.name) NOT BETWEEN 1 AND 255 THEN
            ARRAY['name of a role must have between 1 and 255 bytes',
                  'The description may be longer.']
        WHEN array_ndims(NEW.permissions) > 1 THEN
            ARRAY['permissions of a role must be an array of one dimension',
                  'Give them one after the other, such as {docs.read,docs.write}.']
        WHEN array_position(NEW.permissions, NULL) IS NOT NULL THEN
            ARRAY['permissions of a role must not contain nulls',
                  'Use {} for none.']
    END;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = refusal[1], HINT = refusal[2];
    END IF;
    PERFORM apikeys.check_permissions(NEW.permissions);

    IF TG_OP = 'UPDATE' THEN
        IF NEW.name <> OLD.name OR NEW.created_at <> OLD.created_at THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'columns "name" and "created_at" of a role cannot be changed';
        END IF;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.roles_before_write() IS
'Check a role that is written, and note when it is changed.
Trigger. Raises 22023 for a value that cannot be, 55000 for a change of name or created_at.';
REVOKE EXECUTE ON FUNCTION apikeys.roles_before_write() FROM PUBLIC;

CREATE TRIGGER before_write BEFORE INSERT OR UPDATE ON apikeys.roles
    FOR EACH ROW EXECUTE FUNCTION apikeys.roles_before_write();
COMMENT ON TRIGGER before_write ON apikeys.roles IS 'Checks values and sets updated_at';

-- Keys: every column but last_used_at, which the worker writes in batches
-- that change nothing anyone must hear of, and fenced_at, which leaves
-- updated_at alone: that tells whether a key is the same in another copy of the
-- database.

CREATE TRIGGER before_write BEFORE INSERT OR UPDATE OF id, api_id, name,
    user_id, plan_id, enabled, start, digest, previous_digest,
    previous_expires_at, permissions, allowed_ips, metadata, expires_at,
    created_at, updated_at, regenerated_at, deleted_at, roles, credits,
    refill_amount, refill_every, refill_day, erased_at
    ON apikeys.keys
    FOR EACH ROW EXECUTE FUNCTION apikeys.keys_before_write();
COMMENT ON TRIGGER before_write ON apikeys.keys IS 'Checks values, applies the plan to new keys and sets updated_at';

-- Whoever holds rows in a cache must learn of changes, and a change must be
-- durable once it is acknowledged. Keys are never cached, and change in bulk:
-- theirs is a statement's trigger. The others are row triggers, since a
-- subscriber of logical replication fires no others.

CREATE TRIGGER announce_change AFTER INSERT OR DELETE OR UPDATE OF id, api_id,
    name, user_id, plan_id, enabled, start, digest, previous_digest,
    previous_expires_at, permissions, allowed_ips, metadata, expires_at,
    created_at, updated_at, regenerated_at, deleted_at, roles, credits,
    refill_amount, refill_every, refill_day, erased_at, fenced_at
    ON apikeys.keys
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.keys ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.keys IS 'Makes the change durable and known to all sessions';

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON apikeys.apis
    FOR EACH ROW EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.apis ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.apis IS 'Makes the change durable and known to all sessions';

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON apikeys.plans
    FOR EACH ROW EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.plans ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.plans IS 'Makes the change durable and known to all sessions';

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON apikeys.users
    FOR EACH ROW EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.users ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.users IS 'Makes the change durable and known to all sessions';

CREATE TRIGGER announce_change AFTER INSERT OR UPDATE OR DELETE ON apikeys.roles
    FOR EACH ROW EXECUTE FUNCTION apikeys.announce_change();
ALTER TABLE apikeys.roles ENABLE ALWAYS TRIGGER announce_change;
COMMENT ON TRIGGER announce_change ON apikeys.roles IS 'Makes the change durable and known to all sessions';

-- Soft delete. The row is put back after it is gone: a BEFORE trigger that
-- returns NULL would answer DELETE 0 and nothing to RETURNING. The name sorts
-- before RI_, so that the foreign keys (NO ACTION) find the row in its place.
-- It runs with its owner's rights: who may DELETE need not be granted INSERT.
-- The whole row is put back, with the columns that a DBA has added. Where some of
-- them take no value the others are named, which takes longer.

CREATE FUNCTION apikeys.soft_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored text;
BEGIN
    IF apikeys.in_purge() OR apikeys.in_subscription() THEN
        RETURN NULL;
    END IF;
    IF OLD.deleted_at IS NULL THEN
        OLD.deleted_at := now();
        OLD.updated_at := now();
    END IF;
    IF EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = TG_RELID AND a.attnum > 0
                  AND (a.attgenerated <> '' OR a.attidentity <> '')) THEN
        SELECT string_agg(quote_ident(a.attname), ', ') INTO stored
          FROM pg_attribute a
         WHERE a.attrelid = TG_RELID AND a.attnum > 0
           AND NOT a.attisdropped AND a.attgenerated = '';
        EXECUTE format('INSERT INTO apikeys.%1$I (%2$s) OVERRIDING SYSTEM VALUE'
                       ' SELECT %2$s FROM (SELECT ($1).*) deleted',
                       TG_TABLE_NAME, stored)
            USING OLD;
        RETURN NULL;
    END IF;
    CASE TG_TABLE_NAME
        WHEN 'keys' THEN INSERT INTO apikeys.keys SELECT OLD.*;
        WHEN 'plans' THEN INSERT INTO apikeys.plans SELECT OLD.*;
        WHEN 'users' THEN INSERT INTO apikeys.users SELECT OLD.*;
    END CASE;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION apikeys.soft_delete() IS
'Put a deleted row back, marked as deleted.
Trigger. Does nothing while apikey_purge runs, and where a DELETE comes by logical replication.';
REVOKE EXECUTE ON FUNCTION apikeys.soft_delete() FROM PUBLIC;

CREATE TRIGGER "0_soft_delete" AFTER DELETE ON apikeys.keys
    FOR EACH ROW EXECUTE FUNCTION apikeys.soft_delete();
ALTER TABLE apikeys.keys ENABLE ALWAYS TRIGGER "0_soft_delete";
COMMENT ON TRIGGER "0_soft_delete" ON apikeys.keys IS 'DELETE marks the row; apikey_purge removes it';

CREATE TRIGGER "0_soft_delete" AFTER DELETE ON apikeys.plans
    FOR EACH ROW EXECUTE FUNCTION apikeys.soft_delete();
ALTER TABLE apikeys.plans ENABLE ALWAYS TRIGGER "0_soft_delete";
COMMENT ON TRIGGER "0_soft_delete" ON apikeys.plans IS 'DELETE marks the row; apikey_purge removes it';

CREATE TRIGGER "0_soft_delete" AFTER DELETE ON apikeys.users
    FOR EACH ROW EXECUTE FUNCTION apikeys.soft_delete();
ALTER TABLE apikeys.users ENABLE ALWAYS TRIGGER "0_soft_delete";
COMMENT ON TRIGGER "0_soft_delete" ON apikeys.users IS 'DELETE marks the row; apikey_purge removes it';

-- TRUNCATE would pass by all of that, and by the meter.

CREATE FUNCTION apikeys.refuse_truncate() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'table "%.%" cannot be truncated', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'feature_not_supported',
        HINT = CASE
            WHEN TG_TABLE_NAME IN ('keys', 'plans', 'users') THEN
                'DELETE marks the rows as deleted; apikey_purge removes them for good.'
            WHEN TG_TABLE_NAME IN ('apis', 'roles', 'limits') THEN
                'DELETE removes rows.'
            ELSE 'The worker keeps the table.'
        END;
END
$$;
COMMENT ON FUNCTION apikeys.refuse_truncate() IS
'Refuse TRUNCATE.
Trigger. Raises 0A000.';
REVOKE EXECUTE ON FUNCTION apikeys.refuse_truncate() FROM PUBLIC;

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.keys
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.keys ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.keys IS 'Rows are removed by apikey_purge alone';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.plans
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.plans ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.plans IS 'Rows are removed by apikey_purge alone';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.users
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.users ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.users IS 'Rows are removed by apikey_purge alone';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.apis
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.apis ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.apis IS 'Keys depend on their apis';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.roles
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.roles ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.roles IS 'Keys depend on their roles';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.usage
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.usage ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.usage IS 'The meter depends on its durable side';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.incarnations
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.incarnations ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.incarnations IS 'The meter depends on its durable side';

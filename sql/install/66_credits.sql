-- Credits: what a row of a key or a user may say of them, the ledger of what
-- was granted, and the functions that grant. A plain UPDATE of "credits" is
-- written to the ledger like any other grant.

CREATE FUNCTION apikeys.credits_before_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
BEGIN
    refusal := CASE
        WHEN abs(NEW.credits) > 2305843009213693952 THEN
            ARRAY['credits are out of range', 'At most 2^61 can be granted.']
        WHEN NEW.refill_amount NOT BETWEEN 1 AND 2305843009213693952 THEN
            ARRAY['refill_amount must be between 1 and 2^61',
                  'A refill raises the balance to it. NULL is no refill.']
        WHEN NEW.refill_amount IS NULL
            AND num_nonnulls(NEW.refill_every, NEW.refill_day) > 0 THEN
            ARRAY['refill_amount must be given with refill_every and refill_day',
                  'A refill raises the balance to it.']
        WHEN NEW.refill_amount IS NOT NULL AND NEW.refill_every IS NULL THEN
            ARRAY['refill_every must be given with refill_amount',
                  'It is the interval between refills, such as 1 day, 1 week or 1 month.']
        WHEN NEW.refill_every <= '0' THEN
            ARRAY['refill_every must be positive',
                  'It is the interval between refills, such as 1 day, 1 week or 1 month.']
        WHEN NEW.refill_amount IS NOT NULL
            AND NOT apikeys.is_refill(NEW.refill_every, NULL) THEN
            ARRAY['credits cannot refill at this interval',
                  'Give months alone, or days and shorter units down to a second; at most a century.',
                  'refill_every']
        WHEN NEW.refill_amount IS NOT NULL
            AND NOT apikeys.is_refill(NEW.refill_every, NEW.refill_day) THEN
            ARRAY[format('refill_day cannot be %s', NEW.refill_day),
                  CASE WHEN apikeys.is_refill(NEW.refill_every, 31) THEN
                           'It is a day of the month, 1 to 31; 31 is the last one.'
                       WHEN apikeys.is_refill(NEW.refill_every, 7) THEN
                           'It is a day of the week, 1 (Monday) to 7.'
                       ELSE 'A day can be chosen for months and whole weeks.'
                  END]
    END;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = refusal[1], HINT = refusal[2], COLUMN = coalesce(refusal[3], '');
    END IF;

    -- A refill that is due is applied before its terms change.
    IF TG_OP = 'UPDATE' AND OLD.credits IS NOT NULL AND OLD.refill_amount IS NOT NULL
        AND (NEW.credits IS NULL OR
             (NEW.refill_amount, NEW.refill_every, NEW.refill_day)
             IS DISTINCT FROM (OLD.refill_amount, OLD.refill_every, OLD.refill_day)) THEN
        PERFORM FROM apikeys.credit_account(
            (to_jsonb(OLD) ->> CASE TG_TABLE_NAME WHEN 'keys' THEN 'id' ELSE 'subject_id' END)::uuid,
            CASE TG_TABLE_NAME WHEN 'keys' THEN 'key' ELSE 'user' END,
            OLD.credits, OLD.refill_amount, OLD.refill_every, OLD.refill_day,
            OLD.refill_since, true);
    END IF;

    -- Refills that were due before the terms held are not made up for. A
    -- restored row keeps what it says.
    IF NEW.refill_amount IS NULL THEN
        NEW.refill_since := NULL;
    ELSIF TG_OP = 'INSERT' THEN
        NEW.refill_since := coalesce(NEW.refill_since, clock_timestamp());
    ELSIF OLD.credits IS NULL OR
        (NEW.refill_amount, NEW.refill_every, NEW.refill_day)
            IS DISTINCT FROM (OLD.refill_amount, OLD.refill_every, OLD.refill_day) THEN
        NEW.refill_since := clock_timestamp();
    ELSE
        NEW.refill_since := OLD.refill_since;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION apikeys.credits_before_write() IS
'Check the credits of a key or a user that is written.
Trigger. Notes when a refill was set up. Raises 22023 for a value that cannot be.';
REVOKE EXECUTE ON FUNCTION apikeys.credits_before_write() FROM PUBLIC;

CREATE TRIGGER credits_before_write
    BEFORE INSERT OR UPDATE OF credits, refill_amount, refill_every, refill_day, refill_since
    ON apikeys.keys FOR EACH ROW
    WHEN (num_nonnulls(NEW.credits, NEW.refill_amount, NEW.refill_every, NEW.refill_day, NEW.refill_since) > 0)
    EXECUTE FUNCTION apikeys.credits_before_write();
COMMENT ON TRIGGER credits_before_write ON apikeys.keys IS 'Checks credits and their refill';

CREATE TRIGGER credits_before_write
    BEFORE INSERT OR UPDATE OF credits, refill_amount, refill_every, refill_day, refill_since
    ON apikeys.users FOR EACH ROW
    WHEN (num_nonnulls(NEW.credits, NEW.refill_amount, NEW.refill_every, NEW.refill_day, NEW.refill_since) > 0)
    EXECUTE FUNCTION apikeys.credits_before_write();
COMMENT ON TRIGGER credits_before_write ON apikeys.users IS 'Checks credits and their refill';

-- Every change of what is granted is a row of the ledger, so that the sum of
-- the ledger less what was consumed is the balance. While credits are unlimited
-- nothing is left of them, but requests that were admitted before may still
-- charge or give back: set again, they make up for that.

CREATE FUNCTION apikeys.write_ledger() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    subject CONSTANT text := CASE TG_TABLE_NAME WHEN 'keys' THEN 'key' ELSE 'user' END;
    holder CONSTANT uuid := to_jsonb(NEW) ->> CASE TG_TABLE_NAME WHEN 'keys' THEN 'id' ELSE 'subject_id' END;
    before bigint := 0;
    change bigint;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        before := OLD.credits;
    END IF;
    change := CASE
        WHEN NEW.credits IS NULL THEN
            (SELECT a.charged - before
               FROM apikeys.credit_account(holder, subject, NULL, NULL, NULL, NULL, NULL, false) a)
        WHEN before IS NULL THEN
            NEW.credits - (SELECT coalesce(sum(l.amount), 0)
                             FROM apikeys.ledger l
                            WHERE l.subject_id = holder AND l.kind = 'credits'
                              AND l.operation IN ('grant', 'deduct', 'unlimited'))
        ELSE NEW.credits - before
    END;
    INSERT INTO apikeys.ledger (subject_id, subject, kind, operation, amount)
    VALUES (holder, subject, 'credits',
        CASE WHEN NEW.credits IS NULL THEN 'unlimited'
             WHEN change < 0 THEN 'deduct' ELSE 'grant' END,
        change);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION apikeys.write_ledger() IS
'Write a change of granted credits to the ledger.
Trigger.';
REVOKE EXECUTE ON FUNCTION apikeys.write_ledger() FROM PUBLIC;

-- A row that is restored, or put back by its deletion, brings its ledger along.
CREATE TRIGGER write_ledger_insert AFTER INSERT ON apikeys.keys FOR EACH ROW
    WHEN (NEW.credits IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.created_at = transaction_timestamp())
    EXECUTE FUNCTION apikeys.write_ledger();
COMMENT ON TRIGGER write_ledger_insert ON apikeys.keys IS 'Credits of a new key go to the ledger';

CREATE TRIGGER write_ledger_update AFTER UPDATE OF credits ON apikeys.keys FOR EACH ROW
    WHEN (OLD.credits IS DISTINCT FROM NEW.credits)
    EXECUTE FUNCTION apikeys.write_ledger();
COMMENT ON TRIGGER write_ledger_update ON apikeys.keys IS 'A change of credits goes to the ledger';

CREATE TRIGGER write_ledger_insert AFTER INSERT ON apikeys.users FOR EACH ROW
    WHEN (NEW.credits IS NOT NULL AND NEW.deleted_at IS NULL AND NEW.created_at = transaction_timestamp())
    EXECUTE FUNCTION apikeys.write_ledger();
COMMENT ON TRIGGER write_ledger_insert ON apikeys.users IS 'Credits of a new user go to the ledger';

CREATE TRIGGER write_ledger_update AFTER UPDATE OF credits ON apikeys.users FOR EACH ROW
    WHEN (OLD.credits IS DISTINCT FROM NEW.credits)
    EXECUTE FUNCTION apikeys.write_ledger();
COMMENT ON TRIGGER write_ledger_update ON apikeys.users IS 'A change of credits goes to the ledger';

CREATE FUNCTION apikeys.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'rows of "%.%" cannot be changed', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'Write another row that makes up for it.';
END
$$;
COMMENT ON FUNCTION apikeys.refuse_change() IS
'Refuse a change of what only grows.
Trigger. Raises 55000.';
REVOKE EXECUTE ON FUNCTION apikeys.refuse_change() FROM PUBLIC;

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON apikeys.ledger
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_change();
ALTER TABLE apikeys.ledger ENABLE ALWAYS TRIGGER refuse_change;
COMMENT ON TRIGGER refuse_change ON apikeys.ledger IS 'The ledger only grows';

-- The new figure of granted credits, after an operation.
CREATE FUNCTION apikeys.credits_after(operation text, value bigint, credits bigint, charged bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal text[];
    granted numeric;
BEGIN
    refusal := CASE
        WHEN operation IS NULL THEN
            ARRAY['22004', 'operation must not be null',
                  'The operations are "set", "add" and "subtract".']
        WHEN operation NOT IN ('set', 'add', 'subtract') THEN
            ARRAY['22023', format('unknown operation "%s"', left(operation, 63)),
                  'The operations are "set", "add" and "subtract".']
        WHEN value < 0 THEN
            ARRAY['22023', 'value must not be negative',
                  'Use "add" or "subtract".']
        WHEN value IS NULL AND operation <> 'set' THEN
            ARRAY['22004', format('value to %s must not be null', operation),
                  'Set to NULL, credits are unlimited.']
        WHEN credits IS NULL AND operation <> 'set' THEN
            ARRAY['55000', 'credits are unlimited', 'Set them first.']
        WHEN operation = 'subtract' AND value > credits - charged THEN
            ARRAY['22023', format('cannot subtract %s from a balance of %s', value, credits - charged),
                  'Set it to 0 instead.', 'value']
    END;
    IF refusal IS NULL THEN
        granted := CASE operation WHEN 'set' THEN charged::numeric + value
                                  WHEN 'add' THEN credits::numeric + value
                                  ELSE credits::numeric - value END;
        IF abs(granted) > 2305843009213693952 THEN
            refusal := ARRAY['22023', 'credits are out of range', 'At most 2^61 can be granted.', 'value'];
        END IF;
    END IF;
    IF refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = refusal[1], MESSAGE = refusal[2], HINT = refusal[3],
            COLUMN = coalesce(refusal[4], '');
    END IF;
    RETURN granted;
END
$$;
COMMENT ON FUNCTION apikeys.credits_after(text, bigint, bigint, bigint) IS
'What is granted after an operation of apikey_credits.
charged is what was consumed less what refills have added. Raises 22023, 22004 or 55000.';
REVOKE EXECUTE ON FUNCTION apikeys.credits_after(text, bigint, bigint, bigint) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_credits(id uuid, operation text, value bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    holder apikeys.keys;
    charged bigint;
    granted bigint;
BEGIN
    SELECT k.* INTO holder FROM apikeys.keys k
     WHERE k.id = apikey_credits.id AND k.deleted_at IS NULL
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('key', apikey_credits.id::text);
    END IF;
    charged := (SELECT a.charged
                  FROM apikeys.credit_account(holder.id, 'key', holder.credits,
                       holder.refill_amount, holder.refill_every,
                       holder.refill_day, holder.refill_since, true) a);
    granted := apikeys.credits_after(apikey_credits.operation,
        apikey_credits.value, holder.credits, charged);
    UPDATE apikeys.keys k SET credits = granted WHERE k.id = holder.id;
    RETURN granted - charged;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_credits(uuid, text, bigint) IS
'Grant or take credits of a key.
operation is set (the balance becomes value; NULL: unlimited), add or subtract; the change is a row of apikeys.ledger. What is consumed meanwhile stays consumed. Returns the balance.
Raises P0002 for an unknown or deleted key, 22023 or 22004 for an operation or value that cannot be, 55000 to add to or subtract from unlimited credits.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_credits(uuid, text, bigint) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_credits(user_id text, operation text, value bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    holder apikeys.users;
    charged bigint;
    granted bigint;
BEGIN
    SELECT u.* INTO holder FROM apikeys.users u
     WHERE u.id = apikey_user_credits.user_id AND u.deleted_at IS NULL
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM apikeys.refuse_unknown('user', apikey_user_credits.user_id);
    END IF;
    charged := (SELECT a.charged
                  FROM apikeys.credit_account(holder.subject_id, 'user',
                       holder.credits, holder.refill_amount,
                       holder.refill_every, holder.refill_day,
                       holder.refill_since, true) a);
    granted := apikeys.credits_after(apikey_user_credits.operation,
        apikey_user_credits.value, holder.credits, charged);
    UPDATE apikeys.users u SET credits = granted WHERE u.id = holder.id;
    RETURN granted - charged;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_credits(text, text, bigint) IS
'Grant or take credits that the keys of a user share.
As apikey_credits, for all keys of the user that have no credits of their own. Returns the balance.
Raises P0002 for an unknown or deleted user, 22023 or 22004 for an operation or value that cannot be, 55000 to add to or subtract from unlimited credits.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_credits(text, text, bigint) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_ledger(id uuid, page_size int = 100, before uuid = NULL)
RETURNS SETOF apikeys.ledger
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM apikeys.check_page(apikey_ledger.page_size, 0);
    RETURN QUERY
        SELECT l.* FROM apikeys.ledger l
         WHERE l.subject_id = apikey_ledger.id
           AND (apikey_ledger.before IS NULL OR l.id < apikey_ledger.before)
         ORDER BY l.id DESC
         LIMIT apikey_ledger.page_size;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_ledger(uuid, int, uuid) IS
'List what has changed the credits and counts of a key other than requests, newest first.
A page holds page_size rows, at most 1,000; the next one is asked for with before, the last id seen. An unknown id gives no row; what a user''s keys share is in apikey_user_ledger.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_ledger(uuid, int, uuid) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_user_ledger(user_id text, page_size int = 100, before uuid = NULL)
RETURNS SETOF apikeys.ledger
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
        SELECT l.* FROM apikeys.users u,
               LATERAL @extschema@.apikey_ledger(u.subject_id,
                   apikey_user_ledger.page_size, apikey_user_ledger.before) l
         WHERE u.id = apikey_user_ledger.user_id;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_user_ledger(text, int, uuid) IS
'List what has changed the credits and counts that the keys of a user share other than requests, newest first.
As apikey_ledger. An unknown id gives no row.
Raises 22023 for a page that cannot be.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_user_ledger(text, int, uuid) FROM PUBLIC;

-- Counts.

CREATE FUNCTION apikeys.adjust_count(
    id uuid,
    INOUT delta bigint,
    OUT subject_id uuid,
    OUT subject text,
    OUT period text,
    OUT period_start timestamptz
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikeys_adjust_count';
COMMENT ON FUNCTION apikeys.adjust_count(uuid, bigint) IS
'Add to the count of the current period to which the requests of a key go.
A delta that is NULL makes it zero. Given back if the transaction aborts.
Errors: P0002 for an unknown key, 22023 below zero, 53000 if the worker cannot
keep up.';
REVOKE EXECUTE ON FUNCTION apikeys.adjust_count(uuid, bigint) FROM PUBLIC;

CREATE FUNCTION @extschema@.apikey_usage_adjust(id uuid, delta bigint, reason text = NULL) RETURNS apikeys.usage_report
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    report apikeys.usage_report;
BEGIN
    INSERT INTO apikeys.ledger (subject_id, subject, kind, operation, amount,
        period, period_start, reason)
    SELECT a.subject_id, a.subject, 'usage', 'adjust', a.delta, a.period,
           a.period_start, apikey_usage_adjust.reason
      FROM apikeys.adjust_count(apikey_usage_adjust.id, apikey_usage_adjust.delta) a;
    SELECT u.* INTO report FROM @extschema@.apikey_usage(apikey_usage_adjust.id) u;
    RETURN report;
END
$$;
COMMENT ON FUNCTION @extschema@.apikey_usage_adjust(uuid, bigint, text) IS
'Correct the count of requests of a key in the current period.
delta is added to it, NULL makes it zero; where the plan is the user''s, to the count that all keys of the user share. The change holds at once for every session and is a row of apikeys.ledger, with the reason; it is undone if the transaction aborts. Returns the usage after it.
Raises P0002 for an unknown key, 22023 if the count would fall below zero, 0A000 to PREPARE the transaction.';
REVOKE EXECUTE ON FUNCTION @extschema@.apikey_usage_adjust(uuid, bigint, text) FROM PUBLIC;

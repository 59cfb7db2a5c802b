-- on_abort: what an aborted transaction or savepoint consumed is given back,
-- if the call asked for it, and only then.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Refund', 100, 'year', 'refund');
SELECT count(*) FROM apikey_limit_set('burst', 50, '50 days', plan_id => 'refund');
SELECT id, api_key FROM apikey_create('refund', plan_id => 'refund') \gset
CREATE FUNCTION pg_temp.left_of(id uuid) RETURNS text LANGUAGE sql AS $$
SELECT string_agg(l ->> 'remaining', ' ' ORDER BY l ->> 'name') FROM apikey_usage(id), jsonb_array_elements(limits) l
$$;

-- The default keeps it.
BEGIN;
SELECT code FROM apikey_verify(:'api_key');
ROLLBACK;
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- A rollback gives it back, a commit keeps it.
BEGIN;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 10, on_abort => 'refund');
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 5, on_abort => 'refund');
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 2);
ROLLBACK;
SELECT pg_temp.left_of(:'id') AS burst_quota;
BEGIN;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 3, on_abort => 'refund');
COMMIT;
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- Savepoints: each its own; what was released belongs to the one around it.
BEGIN;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 1, on_abort => 'refund');
SAVEPOINT a;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 2, on_abort => 'refund');
SAVEPOINT b;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 4, on_abort => 'refund');
ROLLBACK TO b;
SELECT pg_temp.left_of(:'id') AS burst_quota;
SELECT code, remaining FROM apikey_verify(:'api_key', cost => 8, on_abort => 'refund');
RELEASE b;
ROLLBACK TO a;
SELECT pg_temp.left_of(:'id') AS burst_quota;
COMMIT;
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- An exception is a savepoint.
CREATE TEMP TABLE secret AS SELECT :'api_key'::text AS api_key;
DO $$
DECLARE
    secret text := (SELECT api_key FROM pg_temp.secret);
BEGIN
    PERFORM apikey_verify(secret, cost => 7, on_abort => 'refund');
    BEGIN
        PERFORM apikey_verify(secret, cost => 9, on_abort => 'refund');
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN
        NULL;
    END;
END
$$;
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- A statement that fails.
SELECT code, 1 / (remaining - remaining) FROM apikey_verify(:'api_key', cost => 11, on_abort => 'refund');
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- A denial has nothing to give back.
BEGIN;
SELECT code FROM apikey_verify(:'api_key', cost => 60, on_abort => 'refund');
ROLLBACK;
SELECT pg_temp.left_of(:'id') AS burst_quota;
-- Nor is anything kept for it until the transaction ends.
RESET ROLE;
DO $$
DECLARE
    secret text := (SELECT api_key FROM pg_temp.secret);
    used CONSTANT text := $q$SELECT sum(used_bytes) FROM pg_backend_memory_contexts WHERE name = 'TopMemoryContext'$q$;
    before bigint;
    after bigint;
BEGIN
    FOR n IN 1 .. 2000 LOOP
        IF n = 100 THEN
            EXECUTE used INTO before;
        END IF;
        PERFORM apikey_verify(secret, cost => 60, on_abort => 'refund');
    END LOOP;
    EXECUTE used INTO after;
    IF after > before + 50000 THEN
        RAISE '% bytes are kept', after - before;
    END IF;
END
$$;
SET ROLE regress_app;
-- A prepared transaction could not give back: it is refused, and gives back.
BEGIN;
SELECT code FROM apikey_verify(:'api_key', cost => 13, on_abort => 'refund');
PREPARE TRANSACTION 'refund';
SELECT pg_temp.left_of(:'id') AS burst_quota;
SELECT test.refusal(format('SELECT apikey_verify(%L, on_abort => ''nonsense'')', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, on_abort => NULL)', :'api_key'));
RESET ROLE;
-- The durable count follows.
CALL test.until(format('(SELECT current_usage = charged AND current_usage = 14 FROM apikeys.usage WHERE subject_id = %L)', :'id'));

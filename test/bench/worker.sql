-- How fast the worker writes history that waits for it: the time from its
-- beginning, as pg_stat_activity has it, to where the rows can be seen.

SET client_min_messages = warning;
DROP FUNCTION IF EXISTS bench.time_of_flush(uuid, timestamptz);
CREATE FUNCTION bench.time_of_flush(key_id uuid, since timestamptz) RETURNS float8
LANGUAGE plpgsql
AS $$
DECLARE
    began timestamptz;
BEGIN
    FOR i IN 1 .. 15000 LOOP
        PERFORM pg_stat_clear_snapshot();
        began := coalesce((SELECT a.query_start FROM pg_stat_activity a
                            WHERE a.datname = current_database()
                              AND a.backend_type = 'apikeys worker'
                              AND a.query = 'flushing history' AND a.state = 'active'
                              AND a.query_start > since), began);
        IF EXISTS (SELECT FROM apikeys.requests r
                    WHERE r.key_id = time_of_flush.key_id AND r."timestamp" > since) THEN
            RETURN extract(epoch FROM clock_timestamp() - began);
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
    RETURN NULL;
END
$$;

-- How fast the worker writes history that waits for it: the time for which
-- pg_stat_activity shows it at that. What it has written is counted afterwards.

SET client_min_messages = warning;
DROP FUNCTION IF EXISTS bench.time_of_flush(timestamptz);
CREATE FUNCTION bench.time_of_flush(since timestamptz) RETURNS float8
LANGUAGE plpgsql
AS $$
DECLARE
    began timestamptz;
    begins timestamptz;
BEGIN
    FOR i IN 1 .. 15000 LOOP
        PERFORM pg_stat_clear_snapshot();
        begins := (SELECT a.query_start FROM pg_stat_activity a
                    WHERE a.datname = current_database()
                      AND a.backend_type = 'apikeys worker'
                      AND a.query = 'flushing history' AND a.state = 'active'
                      AND a.query_start > since);
        IF began IS NOT NULL AND begins IS DISTINCT FROM began THEN
            RETURN extract(epoch FROM clock_timestamp() - began);
        END IF;
        began := begins;
        PERFORM pg_sleep(0.002);
    END LOOP;
    RETURN NULL;
END
$$;

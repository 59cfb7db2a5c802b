-- A column of an answer that shows a column of a table, or of another answer, has
-- the comment of that, unless it was given one of its own. In this order: what was
-- copied is copied on.

DO LANGUAGE plpgsql $copy$
DECLARE
    c record;
    answer text[];
BEGIN
    FOREACH answer SLICE 1 IN ARRAY ARRAY[
        ['key_objects', 'keys'],
        ['issued_key', 'key_objects'],
        ['plan_objects', 'plans'],
        ['user_objects', 'users'],
        ['role_objects', 'roles'],
        ['limit_objects', 'limits'],
        ['verification', 'keys'],
        ['reservation', 'verification'],
        ['usage_report', 'verification'],
        ['current_key', 'verification']]
    LOOP
        FOR c IN
            SELECT a.attname, col_description(s.attrelid, s.attnum) AS comment
              FROM pg_catalog.pg_attribute a
              JOIN pg_catalog.pg_attribute s ON s.attname = a.attname AND s.attnum > 0
             WHERE a.attrelid = format('apikeys.%I', answer[1])::regclass AND a.attnum > 0
               AND s.attrelid = format('apikeys.%I', answer[2])::regclass
               AND col_description(a.attrelid, a.attnum) IS NULL
               AND col_description(s.attrelid, s.attnum) IS NOT NULL
        LOOP
            EXECUTE format('COMMENT ON COLUMN apikeys.%I.%I IS %L', answer[1], c.attname, c.comment);
        END LOOP;
    END LOOP;
END
$copy$;

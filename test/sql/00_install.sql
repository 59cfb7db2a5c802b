-- The extension as installed: every object is described, nothing is open to
-- PUBLIC, names and arguments are those of the reference. Also makes the roles
-- and helpers that the other scripts use.
\set SHOW_CONTEXT never

-- The schema "apikeys" is the extension's own: the functions go elsewhere.
CREATE SCHEMA apikeys;
CREATE EXTENSION apikeys SCHEMA apikeys CASCADE;
DROP SCHEMA apikeys;

CREATE EXTENSION apikeys CASCADE;

-- The functions, by signature.
\pset format unaligned
SELECT format('%s(%s) -> %s', p.proname, pg_get_function_arguments(p.oid),
              pg_get_function_result(p.oid)) AS function
  FROM pg_proc p
  JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
 WHERE e.extname = 'apikeys' AND p.pronamespace = 'public'::regnamespace
 ORDER BY p.proname COLLATE "C", p.oid;
\pset format aligned

CREATE VIEW members AS
SELECT d.classid, d.objid
  FROM pg_depend d
  JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
 WHERE e.extname = 'apikeys' AND d.deptype = 'e';

SELECT count(*) > 50 AS has_members FROM members;

-- Without a comment: objects, columns of tables, views and composite types,
-- indexes, triggers. (The types of rows and arrays are members from PostgreSQL 17 on.)
WITH objects(classid, objid, objsubid) AS (
    SELECT m.classid, m.objid, 0 FROM members m
     WHERE NOT EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                        WHERE m.classid = 'pg_type'::regclass AND t.oid = m.objid
                          AND (t.typelem <> 0 OR c.relkind <> 'c'))
    UNION ALL
    SELECT m.classid, a.attrelid, a.attnum
      FROM members m
      JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
    UNION ALL
    SELECT 'pg_class'::regclass, a.attrelid, a.attnum
      FROM members m
      JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
      JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'pg_class'::regclass, i.indexrelid, 0
      FROM members m
      JOIN pg_index i ON m.classid = 'pg_class'::regclass AND i.indrelid = m.objid
     WHERE NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
    UNION ALL
    SELECT 'pg_trigger'::regclass, t.oid, 0
      FROM members m
      JOIN pg_trigger t ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid
     WHERE NOT t.tgisinternal)
SELECT pg_describe_object(o.classid, o.objid, o.objsubid) AS without_comment
  FROM objects o
 WHERE NOT EXISTS (SELECT FROM pg_description d
                    WHERE d.classoid = o.classid AND d.objoid = o.objid
                      AND d.objsubid = o.objsubid AND d.description <> '')
 ORDER BY 1;

-- Executable by PUBLIC, or granted to anyone but the owner.
SELECT p.oid::regprocedure AS open_function
  FROM members m
  JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
 WHERE EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee <> p.proowner)
 ORDER BY p.oid::regprocedure::text COLLATE "C";

SELECT c.oid::regclass AS open_relation
  FROM members m
  JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
 WHERE EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner)
 ORDER BY 1;

-- Whose search_path a caller could choose.
SELECT p.oid::regprocedure AS without_search_path
  FROM members m
  JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
  JOIN pg_language l ON l.oid = p.prolang
 WHERE l.lanname <> 'c'
   AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)
 ORDER BY p.oid::regprocedure::text COLLATE "C";

-- A verification must neither be folded nor repeated nor run in a worker.
SELECT p.proname, p.provolatile, p.proparallel
  FROM pg_proc p
 WHERE p.proname IN ('apikey_create', 'apikey_regenerate', 'apikey_verify')
 ORDER BY p.proname COLLATE "C";

-- Tables whose rows a dump would leave out (a partition is dumped by itself).
SELECT c.oid::regclass AS not_dumped
  FROM members m
  JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
 WHERE c.relkind = 'r'
   AND c.oid <> ALL (SELECT unnest(extconfig) FROM pg_extension WHERE extname = 'apikeys')
 ORDER BY 1;

-- No rows come with the installation: they would break a restore.
SELECT (SELECT count(*) FROM apikeys.apis) AS apis,
       (SELECT count(*) FROM apikeys.plans) AS plans,
       (SELECT count(*) FROM apikeys.users) AS users,
       (SELECT count(*) FROM apikeys.roles) AS roles,
       (SELECT count(*) FROM apikeys.keys) AS keys,
       (SELECT count(*) FROM apikeys.requests) AS requests;

-- The triggers: O fires as usual, A whatever session_replication_role says.
SELECT t.tgrelid::regclass AS relation, t.tgname, t.tgenabled
  FROM members m
  JOIN pg_trigger t ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid
 WHERE NOT t.tgisinternal
 ORDER BY t.tgrelid::regclass::text COLLATE "C", t.tgname;

-- Those on keys listen to every column but those that are not the client's.
SELECT t.tgname, a.attname AS not_listened_to
  FROM pg_trigger t
  JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE t.tgrelid = 'apikeys.keys'::regclass AND NOT t.tgisinternal
   AND t.tgname IN ('announce_change', 'before_write')
   AND a.attnum <> ALL (t.tgattr::int2[])
 ORDER BY t.tgname;

DROP VIEW members;

-- Roles. regress_app is the usual application: it manages and verifies.
CREATE ROLE regress_verifier;
CREATE ROLE regress_viewer;
CREATE ROLE regress_manager;
CREATE ROLE regress_app;
CREATE ROLE regress_stranger;
SELECT apikey_grant('regress_verifier', 'verifier');
SELECT apikey_grant('regress_viewer', 'viewer');
SELECT apikey_grant('regress_manager', 'manager');
SELECT apikey_grant('regress_app', 'manager');
SELECT apikey_grant('regress_app', 'verifier');

-- Helpers of the tests.
CREATE SCHEMA test;
GRANT USAGE ON SCHEMA test TO PUBLIC;

-- How a statement is refused: SQLSTATE, message and hint.
CREATE FUNCTION test.refusal(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
    RETURN concat_ws(' | ', SQLSTATE, message, nullif(hint, ''));
END
$$;

-- Wait until a condition holds. Each look is a transaction of its own, which
-- holds no lock that the worker might want.
CREATE PROCEDURE test.until(condition text)
LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + '3 min';
    holds boolean;
BEGIN
    LOOP
        EXECUTE 'SELECT ' || condition INTO holds;
        COMMIT;
        EXIT WHEN holds;
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'timed out waiting for: %', condition;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;

-- Fingerprint of everything that a client can change.
CREATE FUNCTION test.contents() RETURNS text
LANGUAGE sql SECURITY DEFINER AS $$
SELECT md5(concat((SELECT string_agg(a::text, ';' ORDER BY a.id) FROM apikeys.apis a),
                  (SELECT string_agg(p::text, ';' ORDER BY p.id) FROM apikeys.plans p),
                  (SELECT string_agg(u::text, ';' ORDER BY u.id) FROM apikeys.users u),
                  (SELECT string_agg(r::text, ';' ORDER BY r.name) FROM apikeys.roles r),
                  (SELECT string_agg((to_jsonb(k) - 'last_used_at')::text, ';' ORDER BY k.id) FROM apikeys.keys k)))
$$;

-- The checksum that ends a secret: CRC-32 (IEEE) in six base62 digits.
CREATE FUNCTION test.checksum(body text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    digits CONSTANT text := '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
    crc bigint := 4294967295;
    answer text := '';
BEGIN
    FOR i IN 1 .. length(body) LOOP
        crc := crc # ascii(substr(body, i, 1));
        FOR bit IN 1 .. 8 LOOP
            crc := CASE crc & 1 WHEN 1 THEN (crc >> 1) # 3988292384 ELSE crc >> 1 END;
        END LOOP;
    END LOOP;
    crc := crc # 4294967295;
    FOR i IN 1 .. 6 LOOP
        answer := substr(digits, (crc % 62)::int + 1, 1) || answer;
        crc := crc / 62;
    END LOOP;
    RETURN answer;
END
$$;
-- CRC-32 of "123456789" is 0xCBF43926, the published check value.
SELECT test.checksum('123456789');

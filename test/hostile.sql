-- What the tests of privileges attack with; psql runs it, as a superuser, in a
-- database that test/rich.sql has filled. All is read from the catalogs, so that
-- a new function or table is covered by itself.

SET client_min_messages = warning;
CREATE SCHEMA test;
CREATE ROLE mallory;
CREATE SCHEMA trap AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA trap TO PUBLIC;

-- ----- What there is -----

CREATE VIEW test.functions AS
SELECT p.oid, p.proname AS name, n.nspname AS schema, l.lanname AS language, p.prosecdef, p.pronargs,
       p.proargtypes::oid[] AS types, p.proargnames AS names, p.pronargdefaults, p.prorettype,
       p.proisstrict, p.provariadic <> 0 AS is_variadic,
       format('%I.%I(%s)', n.nspname, p.proname,
           (SELECT string_agg(format('%I.%I', tn.nspname, t.typname), ', ' ORDER BY a.place)
              FROM unnest(p.proargtypes) WITH ORDINALITY a(type, place)
              JOIN pg_type t ON t.oid = a.type JOIN pg_namespace tn ON tn.oid = t.typnamespace)) AS signature
  FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_language l ON l.oid = p.prolang
  JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
 WHERE e.extname = 'apikeys';

-- With the partitions that the worker made.
CREATE VIEW test.relations AS
SELECT c.oid, c.relname AS name, n.nspname AS schema, format('%I.%I', n.nspname, c.relname) AS qualified, c.relkind,
       (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum LIMIT 1) AS first_column
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname IN ('apikeys', 'apikeys_http');

-- ----- Calls that are plausible -----

-- Values by the name of an argument, where need be by function ("f.argument").
CREATE TABLE test.samples (argument text PRIMARY KEY, value text);
INSERT INTO test.samples
SELECT v.* FROM (VALUES
    ('id', 'of a user', 'id'), ('key_id', 'of a user', 'id'), ('subject_id', 'of a user', 'id'),
    ('apikey_restore.id', 'deleted', 'id'), ('apikey_credits.id', 'with credits', 'id'),
    ('reservation_id', 'reservation', 'id'),
    ('key', 'unlimited', 'secret')) a(argument, what, kind)
  JOIN handed_out h USING (what),
  LATERAL (SELECT a.argument, CASE a.kind WHEN 'id' THEN h.id::text ELSE h.secret END) v;
INSERT INTO test.samples
SELECT 'keys', array_agg(h.secret)::text FROM handed_out h WHERE h.secret IS NOT NULL
UNION ALL
SELECT 'key_ids', array_agg(h.id)::text FROM handed_out h WHERE h.secret IS NOT NULL
UNION ALL
SELECT 'dashboard_facts.key', o::text FROM apikeys.key_objects o JOIN handed_out h ON h.id = o.id WHERE h.what = 'of a user';
INSERT INTO test.samples VALUES
    ('user_id', 'acme'), ('plan_id', 'pro'), ('api_id', 'default'), ('apikey_plan_create.plan_id', 'other'),
    ('apikey_plan_delete.plan_id', 'empty'), ('apikey_user_create.user_id', 'other'), ('apikey_user_create.email', 'other@example.com'),
    ('name', 'a name'), ('apikey_role_delete.name', 'writer'), ('apikey_role_update.name', 'reader'), ('apikey_limit_delete.name', 'rate'),
    ('apikey_limit_set.user_id', NULL), ('apikey_limit_set.key_id', NULL),
    ('apikey_limit_delete.user_id', NULL), ('apikey_limit_delete.key_id', NULL),
    ('apikey_limit_list.user_id', NULL), ('apikey_limit_list.key_id', NULL),
    ('check_limit_owner.user_id', NULL), ('check_limit_owner.key_id', NULL),
    ('patch', '{"metadata": {"a": 1}}'), ('apikey_role_update.patch', '{"description": "other"}'),
    ('metadata', '{}'), ('charges', '{}'), ('fields', '{"metadata": "object?"}'),
    ('permissions', '{}'), ('apikey_check.permissions', 'docs.read'), ('apikey_verify_http.permissions', 'docs.read'), ('apikey_verify.permissions', 'docs.read OR NOT docs.write'), ('roles', '{reader}'), ('tags', '{a,b}'),
    ('allowed_ips', '{10.0.0.0/8}'), ('ip_address', '10.1.2.3'), ('endpoint', '/v1'), ('method', 'GET'),
    ('operation', 'add'), ('value', '1'), ('delta', '1'), ('cost', '1'), ('max_cost', '2'), ('actual_cost', '1'),
    ('on_abort', 'keep'), ('step', 'day'), ('every', '1 day'), ('span', 'day'), ('grace', '1 hour'), ('ttl', '1 minute'),
    ('older_than', '1 day'), ('role', 'stranger'), ('privileges', 'manager'), ('prefix', 'ak'), ('enabled', 'true'),
    ('subject', 'key'), ('page', '1'), ('page_size', '10'), ('page_offset', '0'), ('limit', '10'), ('offset', '0'),
    ('dashboard_limit.limit', '{}'), ('request_period', 'day'), ('period', 'month'), ('amount', '10'), ('burst', '20'),
    ('apikey_limit_set.period', '1 minute'), ('is_rate.period', '1 minute'), ('period_start', '2026-11-01 00:00+00'),
    ('anchor', '-infinity'), ('at', '2026-11-23 00:00+00'), ('since', '2026-01-01 00:00+00'), ('start', '2026-11-01 00:00+00'),
    ('from', '2026-11-01 00:00+00'), ('to', '2026-11-23 00:00+00'), ('day', '1'), ('is_refill.day', NULL), ('refill_times.day', NULL),
    ('credits', '100'), ('granted', '100'), ('charged', '1'), ('refill_amount', NULL), ('refill_every', NULL), ('refill_day', NULL),
    ('refill_since', NULL), ('max_requests', '100'), ('max_keys_per_user', '10'), ('key_lifetime', '1 month'), ('is_active', 'true'),
    ('auto_apply', 'true'), ('include_deleted', 'true'), ('apply_refill', 'true'), ('auth_request', 'false'),
    ('description', 'text'), ('reason', 'text'), ('before', NULL), ('after', NULL), ('expires_at', NULL), ('custom_start', NULL),
    ('http_role', NULL), ('email', 'other@example.com'), ('all_keys', 'false'), ('issued_before', '2000-01-01 00:00+00');

CREATE FUNCTION test.value(function text, argument text, type oid) RETURNS text
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
DECLARE
    value text;
BEGIN
    SELECT s.value INTO value FROM test.samples s
     WHERE s.argument IN (value.function || '.' || value.argument, value.argument)
     ORDER BY length(s.argument) DESC LIMIT 1;
    IF NOT FOUND THEN
        value := CASE (SELECT t.typcategory FROM pg_type t WHERE t.oid = value.type)
            WHEN 'N' THEN '1' WHEN 'A' THEN '{}' WHEN 'B' THEN 'true' WHEN 'D' THEN '2026-11-01 00:00+00'
            WHEN 'T' THEN '1 day' WHEN 'S' THEN 'text' END;
    END IF;
    RETURN value;
END
$$;

-- Three ways to call each function: plausible, with NULLs, with values that are odd.
-- All arguments are given, and their types are said.
CREATE TABLE test.calls (
    n int GENERATED ALWAYS AS IDENTITY, function oid, name text, schema text, kind text, statement text);
INSERT INTO test.calls (function, name, schema, kind, statement)
SELECT f.oid, f.name, f.schema, k.kind,
       format(CASE WHEN f.prorettype IN ('trigger'::regtype, 'void'::regtype) THEN 'SELECT %I.%I(%s)' ELSE 'SELECT * FROM %I.%I(%s)' END,
              f.schema, f.name,
              (SELECT string_agg(CASE WHEN f.is_variadic AND a.place = f.pronargs THEN 'VARIADIC ' ELSE '' END || format('%L::%I.%I',
                      CASE k.kind
                          WHEN 'plausible' THEN test.value(f.name, f.names[a.place], a.type)
                          WHEN 'odd' THEN CASE t.typcategory
                              WHEN 'N' THEN CASE t.typname WHEN 'int4' THEN '-2147483648' WHEN 'int8' THEN '-9223372036854775808' ELSE 'NaN' END
                              WHEN 'A' THEN '{NULL}' WHEN 'D' THEN '-infinity' WHEN 'T' THEN '-178000000 years'
                              WHEN 'B' THEN 'false' WHEN 'S' THEN repeat('''"\%{', 60) WHEN 'I' THEN '::/0'
                              WHEN 'U' THEN CASE t.typname WHEN 'jsonb' THEN '[[], {"a": null}]' WHEN 'json' THEN '[{}]'
                                                           WHEN 'uuid' THEN '00000000-0000-0000-0000-000000000000' END
                              END
                      END, tn.nspname, t.typname), ', ' ORDER BY a.place)
                 FROM unnest(f.types) WITH ORDINALITY a(type, place)
                 JOIN pg_type t ON t.oid = a.type JOIN pg_namespace tn ON tn.oid = t.typnamespace))
  FROM test.functions f, (VALUES ('plausible'), ('nulls'), ('odd')) k(kind)
 -- A strict function is not called with NULLs.
 WHERE k.kind = 'plausible' OR (f.pronargs > 0 AND NOT (f.proisstrict AND k.kind = 'nulls'))
 ORDER BY f.schema, f.name, f.oid, k.kind DESC;

-- ----- What must stay as it is (but for what the worker notes) -----

CREATE FUNCTION test.snapshot() RETURNS TABLE (part text, contents text)
LANGUAGE plpgsql AS $$
DECLARE
    r record;
    rows text;
BEGIN
    FOR r IN SELECT * FROM test.relations WHERE relkind = 'r' LOOP
        EXECUTE format('SELECT coalesce(md5(string_agg(y::text, chr(10) ORDER BY y::text)), '''') FROM %s x, LATERAL (VALUES (to_jsonb(x) - ''last_used_at'' - ''noticed_at'')) v(y)', r.qualified) INTO rows;
        part := r.name;
        contents := rows;
        RETURN NEXT;
    END LOOP;
    RETURN QUERY
        SELECT 'meter', coalesce(md5(string_agg(x::text, ';' ORDER BY x::text)), '') FROM apikeys.meter() x
        UNION ALL
        SELECT 'reservations', coalesce(md5(string_agg(x::text, ';' ORDER BY x::text)), '') FROM apikeys.held_reservations() x
        UNION ALL
        SELECT 'pg_proc', md5(string_agg(p::text, ';' ORDER BY p.oid)) FROM pg_proc p JOIN test.functions f ON f.oid = p.oid
        UNION ALL
        SELECT 'pg_class', md5(string_agg(concat(c.oid, coalesce(c.relacl, acldefault('r', c.relowner)), c.relowner, c.relrowsecurity, c.relhasrules), ';' ORDER BY c.oid))
          FROM pg_class c JOIN test.relations t ON t.oid = c.oid
        UNION ALL
        SELECT 'pg_trigger', md5(string_agg(g::text, ';' ORDER BY g.oid)) FROM pg_trigger g JOIN test.relations t ON t.oid = g.tgrelid
        UNION ALL
        SELECT 'pg_rewrite', md5(string_agg(concat(w.oid, w.ev_class, w.ev_action), ';' ORDER BY w.oid))
          FROM pg_rewrite w JOIN test.relations t ON t.oid = w.ev_class
        UNION ALL
        SELECT 'pg_policy', count(*)::text FROM pg_policy
        UNION ALL
        SELECT 'pg_extension', md5(string_agg(d::text, ';' ORDER BY d.classid, d.objid)) FROM pg_depend d
          JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid WHERE e.extname = 'apikeys'
        UNION ALL
        SELECT 'pg_namespace', md5(string_agg(n::text, ';' ORDER BY n.nspname)) FROM pg_namespace n
         WHERE n.nspname IN ('apikeys', 'apikeys_http', 'public');
END
$$;

-- ----- Traps -----

-- Whatever falls into one is counted, also if it is rolled back or caught.
SET ROLE mallory;
CREATE SEQUENCE trap.hits;
GRANT ALL ON SEQUENCE trap.hits TO PUBLIC;
CREATE FUNCTION trap.hit() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.nextval('trap.hits');
    RAISE EXCEPTION 'trapped as %', current_user;
END
$$;
RESET ROLE;

-- A function of every signature in pg_catalog, and every operator, in a schema
-- that goes before pg_catalog in the search_path.
CREATE PROCEDURE test.set_traps() LANGUAGE plpgsql AS $$
DECLARE
    p record;
    body CONSTANT text := $body$ LANGUAGE plpgsql AS 'BEGIN PERFORM trap.hit(); END'$body$;
    polymorphic CONSTANT text := '^any(element|array|nonarray|range|multirange|compatible(array|nonarray|range|multirange)?)$';
BEGIN
    FOR p IN
        SELECT f.proname, a.arguments, r.typname AS result, f.proretset
          FROM pg_catalog.pg_proc f
          JOIN pg_catalog.pg_type r ON r.oid = f.prorettype,
               LATERAL (SELECT string_agg(format('pg_catalog.%I', t.typname), ', ' ORDER BY a.place) AS arguments,
                               bool_and(t.typtype <> 'p' OR t.typname ~ polymorphic) AS usable
                          FROM unnest(f.proargtypes) WITH ORDINALITY a(type, place)
                          JOIN pg_catalog.pg_type t ON t.oid = a.type) a
         WHERE f.pronamespace = 'pg_catalog'::regnamespace AND f.prokind IN ('f', 'a')
           AND coalesce(a.usable, true) AND (r.typtype <> 'p' OR r.typname ~ polymorphic OR r.typname IN ('record', 'void'))
           AND f.provariadic = 0 AND (f.prokind = 'f' OR f.pronargs > 0)
    LOOP
        EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS %s pg_catalog.%I %s', p.proname, p.arguments,
            CASE WHEN p.proretset THEN 'SETOF' ELSE '' END, p.result, body);
    END LOOP;
    CREATE FUNCTION trap.counts(bigint) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM trap.hit(); END';
    CREATE AGGREGATE trap.count(*) (SFUNC = trap.counts, STYPE = bigint);
    FOR p IN
        SELECT o.oprname, l.typname AS left, r.typname AS right, s.typname AS result, o.oid
          FROM pg_catalog.pg_operator o
          LEFT JOIN pg_catalog.pg_type l ON l.oid = o.oprleft
          JOIN pg_catalog.pg_type r ON r.oid = o.oprright
          JOIN pg_catalog.pg_type s ON s.oid = o.oprresult
         WHERE o.oprnamespace = 'pg_catalog'::regnamespace
    LOOP
        EXECUTE format('CREATE FUNCTION trap.%I(%s) RETURNS pg_catalog.%I %s', 'op' || p.oid,
            concat_ws(', ', 'pg_catalog.' || quote_ident(p.left), 'pg_catalog.' || quote_ident(p.right)), p.result, body);
        EXECUTE format('CREATE OPERATOR trap.%s (%s RIGHTARG = pg_catalog.%I, FUNCTION = trap.%I)', p.oprname,
            'LEFTARG = pg_catalog.' || quote_ident(p.left) || ',', p.right, 'op' || p.oid);
    END LOOP;
    -- Types by the names of those that are used.
    FOR p IN
        SELECT DISTINCT t.typname FROM pg_catalog.pg_type t
         WHERE t.typtype IN ('b', 'c', 'd') AND t.typelem = 0
           AND t.typnamespace IN ('apikeys'::regnamespace, 'apikeys_http'::regnamespace, 'pg_catalog'::regnamespace)
           AND t.typrelid = 0
    LOOP
        EXECUTE format('CREATE DOMAIN trap.%I AS pg_catalog.text CHECK (trap.hit())', p.typname);
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA test TO mallory;
SET ROLE mallory;
CALL test.set_traps();
RESET ROLE;

-- For each session: temporary views that hide the extension's and the system's
-- tables.
CREATE FUNCTION test.shadows() RETURNS text LANGUAGE sql AS $$
SELECT string_agg(format('CREATE TEMP VIEW %I AS SELECT trap.hit() AS id;', n.name), E'\n')
  FROM (SELECT name::text FROM test.relations
        UNION
        SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')) n
$$;

-- Overloads of the extension's functions next to them, by who may create there:
-- with fewer arguments, as if for the defaults, and of other types.
CREATE PROCEDURE test.set_overloads() LANGUAGE plpgsql AS $$
DECLARE
    f record;
    types text[];
    other text;
BEGIN
    FOR f IN SELECT * FROM test.functions WHERE pronargs > 0 AND schema = 'public' LOOP
        types := ARRAY(SELECT format('%I.%I', tn.nspname, t.typname)
                         FROM unnest(f.types) WITH ORDINALITY a(type, place)
                         JOIN pg_type t ON t.oid = a.type JOIN pg_namespace tn ON tn.oid = t.typnamespace
                        ORDER BY a.place);
        FOR i IN f.pronargs - f.pronargdefaults .. f.pronargs - 1 LOOP
            CALL test.overload(f.schema, f.name, types[1:i]);
        END LOOP;
        FOR i IN 1 .. f.pronargs LOOP
            FOREACH other IN ARRAY '{text, int8, numeric, varchar, name, anyelement, anynonarray, json}'::text[] LOOP
                CALL test.overload(f.schema, f.name, types[1:i - 1] || ('pg_catalog.' || other) || types[i + 1:]);
            END LOOP;
        END LOOP;
        CALL test.overload(f.schema, f.name, array_fill('pg_catalog.anyelement'::text, ARRAY[f.pronargs::int]));
    END LOOP;
END
$$;
CREATE PROCEDURE test.overload(schema text, name text, types text[]) LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format($f$CREATE FUNCTION %I.%I(%s) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN trap.hit(); END'$f$,
        overload.schema, overload.name, array_to_string(overload.types, ', '));
EXCEPTION WHEN duplicate_function OR invalid_function_definition THEN
    NULL;
END
$$;

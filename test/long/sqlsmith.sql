-- What sqlsmith is shown: psql runs it after test/rich.sql and test/hostile.sql.

SET client_min_messages = warning;
CREATE SCHEMA smith;
GRANT USAGE ON SCHEMA smith, test TO app;
GRANT SELECT ON test.functions, test.samples TO app;
SELECT apikey_grant('app', 'manager'), apikey_grant('app', 'verifier');

-- sqlsmith reads pg_proc without a schema. It leaves out functions that return
-- sets, so none says that it does.
CREATE VIEW smith.pg_proc AS
SELECT p.oid, p.proname, p.pronamespace, p.prorettype, p.proargtypes, p.prokind,
       false AS proretset
  FROM pg_catalog.pg_proc p
 WHERE (EXISTS (SELECT FROM test.functions f WHERE f.oid = p.oid)
        AND has_function_privilege(current_user, p.oid, 'EXECUTE'))
    OR (p.pronamespace = 'pg_catalog'::regnamespace AND p.provolatile = 'i' AND p.prokind <> 'f')
    OR (p.pronamespace = 'pg_catalog'::regnamespace AND p.provolatile = 'i' AND p.prokind = 'f'
        AND p.proname IN ('lower', 'md5', 'to_jsonb', 'array_append', 'int8', 'abs', 'date_trunc',
                          'string_to_array', 'make_interval', 'sha256', 'cidr', 'host'));

-- Nor is a null of a polymorphic type anything that an operator takes.
CREATE VIEW smith.pg_type AS
SELECT t.oid, t.typnamespace, t.typdelim, t.typrelid, t.typelem, t.typarray,
       CASE WHEN t.typname ~ '^any.*multirange$' THEN 'int4multirange'
            WHEN t.typname ~ '^any.*range$' THEN 'int4range'
            WHEN t.typname = 'anyenum' THEN 'int4'
            ELSE t.typname END AS typname,
       CASE WHEN t.typname ~ '^any.*(range|enum)$' THEN 'b' ELSE t.typtype END AS typtype
  FROM pg_catalog.pg_type t;
GRANT SELECT ON smith.pg_proc, smith.pg_type TO PUBLIC;

-- Values to call with, as columns: what callers have.
CREATE TABLE smith.hints AS
SELECT h.id, h.secret AS key, array_agg(h.secret) OVER () AS keys, array_agg(h.id) OVER () AS key_ids,
       u.user_id, p.plan_id, n AS cost, n::int AS page, n % 2 = 0 AS flag, s.step, '{}'::jsonb AS metadata,
       '{"name": "x", "enabled": true}'::jsonb AS patch, '{docs.read}'::text[] AS permissions,
       '10.1.2.3'::inet AS address, n * interval '1 hour' AS span, now() - n * interval '1 day' AS moment,
       o.operation
  FROM handed_out h, generate_series(1::bigint, 3) n,
       (VALUES ('acme'), ('mover')) u(user_id), (VALUES ('pro'), ('minutes')) p(plan_id),
       (VALUES ('day'), ('hour')) s(step), (VALUES ('add'), ('set')) o(operation);
ALTER TABLE smith.hints OWNER TO app;
CREATE TABLE smith.notes (key_id uuid, note text, tags text[], amount bigint, created_at timestamptz);
INSERT INTO smith.notes SELECT h.id, 'note', '{a,b}', h.cost, h.moment FROM smith.hints h LIMIT 20;
ALTER TABLE smith.notes OWNER TO app;

-- What a role that may create in the schema of an installation can put there
-- before: functions and operators that fit better than the polymorphic ones of
-- PostgreSQL. Run by a superuser, in a database without the extension.

SET client_min_messages = warning;
CREATE EXTENSION pgcrypto;
GRANT CREATE ON SCHEMA public TO mallory;
SET ROLE mallory;
CREATE SEQUENCE public.hits;
GRANT ALL ON SEQUENCE public.hits TO PUBLIC;
CREATE FUNCTION public.hit() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('public.hits');
    RAISE EXCEPTION 'trapped as %', current_user;
END
$$;
-- Not into its own traps.
SET search_path = pg_catalog;
DO $$
DECLARE
    body CONSTANT text := $body$ LANGUAGE plpgsql AS 'BEGIN PERFORM public.hit(); END'$body$;
    types CONSTANT text[] := '{text,uuid,int4,int8,interval,timestamptz,jsonb,bool,cidr}';
    f record;
    t text;
    other text;
    third text;
BEGIN
    FOREACH t IN ARRAY types LOOP
        FOR f IN
            SELECT p.proname, o.oprname,
                   ARRAY(SELECT CASE WHEN y.typname ~ '^any.*array$' THEN '_' || t
                                     WHEN y.typname ~ '^any' THEN t ELSE y.typname END
                           FROM unnest(p.proargtypes) WITH ORDINALITY a(type, place)
                           JOIN pg_type y ON y.oid = a.type ORDER BY a.place) AS types,
                   CASE WHEN r.typname ~ '^any.*array$' THEN '_' || t
                        WHEN r.typname ~ '^any' THEN t ELSE r.typname END AS result
              FROM pg_proc p
              JOIN pg_type r ON r.oid = p.prorettype
              LEFT JOIN pg_operator o ON o.oprcode = p.oid
             WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
               AND EXISTS (SELECT FROM unnest(p.proargtypes) a JOIN pg_type y ON y.oid = a WHERE y.typname ~ '^any')
               AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) a JOIN pg_type y ON y.oid = a
                                WHERE y.typname ~ '^any(range|multirange|compatible.*range|enum)|^internal|^cstring')
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %I %s',
                    f.proname, array_to_string(f.types, ', '), f.result, body);
                IF f.oprname IS NOT NULL AND cardinality(f.types) = 2 THEN
                    EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.%I)',
                        f.oprname, f.types[1], f.types[2], f.proname);
                END IF;
            EXCEPTION WHEN duplicate_function OR invalid_function_definition OR ambiguous_function THEN
                NULL;
            END;
        END LOOP;
        FOREACH other IN ARRAY types LOOP
            FOREACH third IN ARRAY types LOOP
                EXECUTE format('CREATE FUNCTION public.num_nonnulls(%s, %s, %s) RETURNS int %s', t, other, third, body);
            END LOOP;
        END LOOP;
    END LOOP;
END
$$;

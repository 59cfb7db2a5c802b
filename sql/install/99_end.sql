-- For whatever fragment forgot: EXECUTE is the gate.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA apikeys_http FROM PUBLIC;

-- Nor does ALTER DEFAULT PRIVILEGES hand out what nobody has meant: hosts of
-- PostgreSQL grant all that is new in "public", functions among it, to the role
-- of requests without a login.
DO LANGUAGE plpgsql $revoke$
DECLARE
    revocation text;
BEGIN
    FOR revocation IN
        SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %s CASCADE', o.kind, o.name,
                   CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
          FROM pg_extension e
          JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
         CROSS JOIN LATERAL (
                SELECT 'FUNCTION', p.oid::regprocedure::text, p.proacl, p.proowner
                  FROM pg_proc p
                 WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid
                UNION ALL
                SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, c.relacl, c.relowner
                  FROM pg_class c
                 WHERE d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind IN ('r', 'p', 'v', 'S')
                UNION ALL
                SELECT 'SCHEMA', n.oid::regnamespace::text, n.nspacl, n.nspowner
                  FROM pg_namespace n
                 WHERE d.classid = 'pg_namespace'::regclass AND n.oid = d.objid) o(kind, name, acl, owner)
         CROSS JOIN LATERAL aclexplode(o.acl) a
         WHERE e.extname = 'apikeys' AND a.grantee <> o.owner
    LOOP
        EXECUTE revocation;
    END LOOP;
END
$revoke$;

-- PostgREST learns of the functions.
NOTIFY pgrst, 'reload schema';

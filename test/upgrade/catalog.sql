-- All that the catalogs say about the extension in this database, for the tests
-- of updates, dumps and upgrades: a line each, "what it is about", a tab, "what is so". No OID,
-- nothing that depends on the order in which objects were made, but for the
-- order of columns. What the worker makes (dated partitions) is left out.
--
-- Backslashes and line ends are escaped, so that a line stays one.

SET search_path = pg_catalog;

CREATE FUNCTION pg_temp.privileges(acl aclitem[], kind "char", owner oid) RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(string_agg(format('%s may %s%s (by %s)',
               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
               a.privilege_type, CASE WHEN a.is_grantable THEN ' and grant it' END,
               a.grantor::regrole), ', '
               ORDER BY a.grantee::regrole::text, a.privilege_type), 'nobody')
      FROM aclexplode(coalesce(acl, acldefault(kind, owner))) a
$$;

WITH extension AS (
    SELECT * FROM pg_extension WHERE extname = 'apikeys'
), members AS (
    SELECT d.classid, d.objid, o.type, o.identity
      FROM extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                      AND d.deptype = 'e',
           pg_identify_object(d.classid, d.objid, d.objsubid) o
), schemas AS (
    SELECT n.* FROM pg_namespace n WHERE n.nspname IN ('apikeys', 'apikeys_http')
), functions AS (
    SELECT p.*, p.oid::regprocedure::text AS identity
      FROM pg_proc p
     WHERE p.pronamespace IN (SELECT oid FROM schemas)
        OR p.oid IN (SELECT objid FROM members WHERE classid = 'pg_proc'::regclass)
), relations AS (
    SELECT c.*, c.oid::regclass::text AS identity
      FROM pg_class c
     WHERE c.relkind NOT IN ('i', 'I', 't')
       AND (c.oid IN (SELECT objid FROM members WHERE classid = 'pg_class'::regclass)
            OR (c.relnamespace IN (SELECT oid FROM schemas) AND NOT c.relispartition)
            -- A composite type is the member, not its relation.
            OR c.reltype IN (SELECT objid FROM members WHERE classid = 'pg_type'::regclass))
), types AS (
    SELECT t.*, t.oid::regtype::text AS identity
      FROM pg_type t
     WHERE (t.typnamespace IN (SELECT oid FROM schemas)
            OR t.oid IN (SELECT objid FROM members WHERE classid = 'pg_type'::regclass))
       AND t.typrelid NOT IN (SELECT oid FROM pg_class WHERE relkind <> 'c')
       AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
), facts (about, property, value) AS (

    SELECT 'extension ' || e.extname, f.*
      FROM extension e, LATERAL (VALUES
           ('version', e.extversion),
           ('schema', e.extnamespace::regnamespace::text),
           ('owner', e.extowner::regrole::text),
           ('relocatable', e.extrelocatable::text),
           ('requires', (SELECT string_agg(r.extname, ', ' ORDER BY r.extname)
                           FROM pg_depend d JOIN pg_extension r ON r.oid = d.refobjid
                          WHERE d.classid = 'pg_extension'::regclass AND d.objid = e.oid
                            AND d.refclassid = 'pg_extension'::regclass)),
           ('comment', obj_description(e.oid, 'pg_extension'))) f
    UNION ALL
    SELECT 'dump of ' || (c.id)::regclass, 'condition', c.condition
      FROM extension e, unnest(e.extconfig, e.extcondition) AS c(id, condition)
    UNION ALL
    SELECT format('member %s %s', m.type, m.identity), 'comment',
           obj_description(m.objid, m.classid::regclass::text::name)
      FROM members m
    UNION ALL
    SELECT format('%s %s', o.type, o.identity), 'initial privileges',
           (SELECT string_agg(item::text, ', ' ORDER BY item::text)
              FROM unnest(i.initprivs) AS item)
      FROM pg_init_privs i
      JOIN members m ON m.classid = i.classoid AND m.objid = i.objoid,
           pg_identify_object(i.classoid, i.objoid, i.objsubid) o
    UNION ALL
    SELECT 'default privileges ' || d.oid::regrole, o.identity, d.acl
      FROM (SELECT a.defaclrole AS oid, a.oid AS id, a.defaclacl::text AS acl
              FROM pg_default_acl a) d,
           pg_identify_object('pg_default_acl'::regclass, d.id, 0) o

    UNION ALL
    SELECT 'schema ' || n.nspname, f.*
      FROM schemas n, LATERAL (VALUES
           ('owner', n.nspowner::regrole::text),
           ('privileges', pg_temp.privileges(n.nspacl, 'n', n.nspowner)),
           ('comment', obj_description(n.oid, 'pg_namespace'))) f

    UNION ALL
    SELECT 'function ' || p.identity, f.*
      FROM functions p, LATERAL (VALUES
           -- With defaults, volatility, security, settings, cost and body.
           ('definition', CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END),
           ('result', pg_get_function_result(p.oid)),
           ('owner', p.proowner::regrole::text),
           ('privileges', pg_temp.privileges(p.proacl, 'f', p.proowner)),
           ('comment', obj_description(p.oid, 'pg_proc'))) f

    UNION ALL
    SELECT 'relation ' || c.identity, f.*
      FROM relations c LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid,
           LATERAL (VALUES
           ('kind', c.relkind::text),
           ('persistence', c.relpersistence::text),
           ('owner', c.relowner::regrole::text),
           ('privileges', pg_temp.privileges(c.relacl,
               CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)),
           ('options', (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(c.reloptions) o)),
           ('toast options', (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(toast.reloptions) o)),
           ('access method', (SELECT a.amname FROM pg_am a WHERE a.oid = c.relam)),
           ('tablespace', (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace)),
           ('row security', format('%s, forced %s', c.relrowsecurity, c.relforcerowsecurity)),
           ('replica identity', c.relreplident::text),
           ('partition key', pg_get_partkeydef(c.oid)),
           ('partition bound', pg_get_expr(c.relpartbound, c.oid)),
           ('parents', (SELECT string_agg(h.inhparent::regclass::text, ', ' ORDER BY h.inhseqno)
                          FROM pg_inherits h WHERE h.inhrelid = c.oid)),
           ('of type', nullif(c.reloftype, 0)::regtype::text),
           ('view', CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END),
           ('sequence', (SELECT to_jsonb(s) - 'seqrelid' FROM pg_sequence s WHERE s.seqrelid = c.oid)::text),
           ('owned by', (SELECT pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
                           FROM pg_depend d
                          WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
                            AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))),
           ('triggers of constraints',
               (SELECT string_agg(format('%s %s', t.tgfoid::regproc, t.tgenabled), ', '
                                  ORDER BY t.tgfoid::regproc::text, t.tgenabled)
                  FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgisinternal)),
           ('comment', obj_description(c.oid, 'pg_class'))) f
    UNION ALL
    SELECT format('column %s.%I', c.identity, a.attname), f.*
      FROM relations c
      JOIN (SELECT a.*, row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) AS place
              FROM pg_attribute a WHERE a.attnum > 0 AND NOT a.attisdropped) a
        ON a.attrelid = c.oid
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum,
           LATERAL (VALUES
           ('place', a.place::text),
           ('type', format_type(a.atttypid, a.atttypmod)),
           ('collation', nullif(a.attcollation, 0)::regcollation::text),
           ('not null', a.attnotnull::text),
           ('default', pg_get_expr(d.adbin, c.oid)),
           ('generated', format('%s%s', a.attgenerated, a.attidentity)),
           ('storage', format('%s %s', a.attstorage, a.attcompression)),
           ('statistics', a.attstattarget::text),
           -- What ALTER TABLE can set. A Debian 15.20 was seen to keep pg_attver
           -- there, too, with other values in other databases.
           ('options', (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(a.attoptions) o
                         WHERE o LIKE 'n\_distinct%')),
           ('inherited', format('%s, local %s', a.attinhcount, a.attislocal)),
           ('privileges', pg_temp.privileges(a.attacl, 'c', c.relowner)),
           ('comment', col_description(c.oid, a.attnum))) f
    UNION ALL
    -- From 18 on there are constraints for NOT NULL. What they are called depends
    -- on how a partition came to be.
    SELECT format('constraint %s on %s',
                  CASE n.contype WHEN 'n' THEN pg_get_constraintdef(n.oid) ELSE quote_ident(n.conname) END,
                  coalesce(c.identity, t.identity)), f.*
      FROM pg_constraint n
      LEFT JOIN relations c ON c.oid = n.conrelid
      LEFT JOIN types t ON t.oid = n.contypid,
           LATERAL (VALUES
           ('definition', pg_get_constraintdef(n.oid)),
           ('validated', n.convalidated::text),
           ('inherited', format('%s, local %s, not inheritable %s',
                                n.coninhcount, n.conislocal, n.connoinherit)),
           ('index', nullif(n.conindid, 0)::regclass::text),
           ('comment', obj_description(n.oid, 'pg_constraint'))) f
     WHERE coalesce(c.oid, t.oid) IS NOT NULL
    UNION ALL
    SELECT format('index %s on %s', i.indexrelid::regclass, c.identity), f.*
      FROM relations c JOIN pg_index i ON i.indrelid = c.oid
      JOIN pg_class x ON x.oid = i.indexrelid, LATERAL (VALUES
           ('definition', pg_get_indexdef(x.oid)),
           ('valid', format('%s, ready %s', i.indisvalid, i.indisready)),
           ('immediate', i.indimmediate::text),
           ('clustered', i.indisclustered::text),
           ('replica identity', i.indisreplident::text),
           ('tablespace', (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = x.reltablespace)),
           ('comment', obj_description(x.oid, 'pg_class'))) f
    UNION ALL
    SELECT format('trigger %I on %s', g.tgname, c.identity), f.*
      FROM relations c JOIN pg_trigger g ON g.tgrelid = c.oid AND NOT g.tgisinternal,
           LATERAL (VALUES
           ('definition', pg_get_triggerdef(g.oid)),
           ('enabled', g.tgenabled::text),
           ('comment', obj_description(g.oid, 'pg_trigger'))) f
    UNION ALL
    SELECT format('rule %I on %s', r.rulename, c.identity), f.*
      FROM relations c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename <> '_RETURN',
           LATERAL (VALUES
           ('definition', pg_get_ruledef(r.oid)),
           ('enabled', r.ev_enabled::text),
           ('comment', obj_description(r.oid, 'pg_rewrite'))) f
    UNION ALL
    SELECT format('policy %I on %s', l.polname, c.identity), f.*
      FROM relations c JOIN pg_policy l ON l.polrelid = c.oid, LATERAL (VALUES
           ('kind', format('%s, permissive %s', l.polcmd, l.polpermissive)),
           ('roles', (SELECT string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE o::regrole::text END, ', '
                                        ORDER BY o::regrole::text) FROM unnest(l.polroles) o)),
           ('using', pg_get_expr(l.polqual, l.polrelid)),
           ('check', pg_get_expr(l.polwithcheck, l.polrelid)),
           ('comment', obj_description(l.oid, 'pg_policy'))) f
    UNION ALL
    SELECT format('statistics %I on %s', s.stxname, c.identity), f.*
      FROM relations c JOIN pg_statistic_ext s ON s.stxrelid = c.oid, LATERAL (VALUES
           ('definition', pg_get_statisticsobjdef(s.oid)),
           ('comment', obj_description(s.oid, 'pg_statistic_ext'))) f

    UNION ALL
    SELECT 'type ' || t.identity, f.*
      FROM types t, LATERAL (VALUES
           ('kind', t.typtype::text),
           ('owner', t.typowner::regrole::text),
           ('privileges', pg_temp.privileges(t.typacl, 'T', t.typowner)),
           ('labels', (SELECT string_agg(l.enumlabel, ', ' ORDER BY l.enumsortorder)
                         FROM pg_enum l WHERE l.enumtypid = t.oid)),
           ('base', format_type(nullif(t.typbasetype, 0), t.typtypmod)),
           ('default', t.typdefault),
           ('not null', t.typnotnull::text),
           ('collation', nullif(t.typcollation, 0)::regcollation::text),
           ('comment', obj_description(t.oid, 'pg_type'))) f
)
SELECT f.about || ', ' || f.property || E'\t' ||
       coalesce(replace(replace(f.value, '\', '\\'), E'\n', '\n'), 'none')
  FROM facts f
 ORDER BY (f.about || ', ' || f.property) COLLATE "C";

-- Permissions: what a key holds, by itself and by its roles, and expressions
-- over it.
\set SHOW_CONTEXT never

-- Like test.refusal, with the detail.
CREATE FUNCTION test.complaint(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
BEGIN
    EXECUTE statement;
    RETURN 'not refused';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN concat_ws(' | ', SQLSTATE, message, nullif(detail, ''));
END
$$;
-- What a key answers to an expression: yes or no.
CREATE FUNCTION test.holds(key text, expression text) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
SELECT CASE v.code WHEN 'VALID' THEN true WHEN 'INSUFFICIENT_PERMISSIONS' THEN false END
  FROM apikey_verify(key, permissions => expression, cost => 0) v
$$;
SET ROLE regress_app;

-- AND, OR, NOT: every combination of what is held, against SQL's own.
CREATE TEMP TABLE holders AS
SELECT a, b, c, k.api_key AS key
  FROM unnest('{t,f}'::boolean[]) a, unnest('{t,f}'::boolean[]) b, unnest('{t,f}'::boolean[]) c,
       LATERAL apikey_create('logic', permissions => array_remove(
           ARRAY[CASE WHEN a THEN 'a' END, CASE WHEN b THEN 'b' END, CASE WHEN c THEN 'c' END], NULL)) k;
CREATE TEMP TABLE formulas (n int GENERATED ALWAYS AS IDENTITY, expression text);
INSERT INTO formulas (expression) VALUES
    ('a'), ('not a'), ('a AND b'), ('a OR b'), ('NOT a AND b'), ('NOT (a AND b)'),
    ('a OR b AND c'), ('(a OR b) AND c'), ('a AND b OR c'), ('a AND (b OR c)'),
    ('NOT a OR b'), ('NOT (a OR b)'), ('NOT NOT a'), ('NOT NOT NOT a'),
    ('NOT a AND NOT b AND NOT c'), ('a OR b OR c'), ('a AND b AND c'),
    ('a OR NOT b AND c'), ('NOT (NOT (a AND b) OR NOT c)'), ('((a))'),
    ('a AND b OR b AND c OR c AND a'), ('(a OR b) AND (b OR c) AND (c OR a)'),
    ('NOT (a OR b AND NOT (b OR c)) OR c AND a');
DO $$
DECLARE
    f record;
    wrong bigint;
BEGIN
    FOR f IN SELECT * FROM formulas ORDER BY n LOOP
        EXECUTE format('SELECT count(*) FROM holders WHERE test.holds(key, %L) IS DISTINCT FROM (%s)',
                       f.expression, f.expression) INTO wrong;
        IF wrong > 0 THEN
            RAISE WARNING '% of 8 differ: %', wrong, f.expression;
        END IF;
    END LOOP;
END
$$;
SELECT count(*) FILTER (WHERE test.holds(key, expression)) AS hold, count(*) AS asked
  FROM holders, formulas;

-- The same in other spellings.
SELECT spelling, count(*) FILTER (WHERE test.holds(key, spelling) = (a OR NOT b AND c)) AS same
  FROM holders,
       unnest(ARRAY['a or not b and c', 'a OR NOT b AND c', 'a Or nOt b aNd c', 'a | ! b & c',
                    'a|!b&c', 'a OR!b&c', '(a)OR(NOT(b)AND(c))', E'\ta\n|\r\n!b\f&\x0Bc  ',
                    'a OR !b AND c', '!(!a&(b|!c))']) WITH ORDINALITY AS t(spelling, n)
 GROUP BY n, spelling
 ORDER BY n;

-- Names: case counts, operators are whole words, no prefix of a name counts.
SELECT api_key FROM apikey_create('names', permissions =>
    '{read,docs.read,billing:invoices-2.void,snake_case,or.and,nota,andy,0,-,_,:,a.b.c}') \gset
SELECT e AS expression, test.holds(:'api_key', e)
  FROM unnest('{read,READ,rea,reads,docs.read,docs,read.docs,docs.read.own,billing:invoices-2.void,
                billing:invoices-2,snake_case,or.and,nota,andy,"NOT nota",0,-,_,:,a.b.c,a.b,
                "0 AND - AND _ AND :"}'::text[])
       WITH ORDINALITY AS t(e, n)
 ORDER BY n;

-- Wildcards in what is held.
CREATE TEMP TABLE wild AS
SELECT n, held, k.api_key AS key
  FROM unnest(ARRAY['{}', '{documents}', '{documents.*}', '{documents.read.*}', '{documents,documents.*}',
                    '{*}', '{other,documents.*}']) WITH ORDINALITY AS t(held, n),
       LATERAL apikey_create('wild', permissions => held::text[]) k;
SELECT held, test.holds(key, 'documents') AS documents,
       test.holds(key, 'documents.read') AS "documents.read",
       test.holds(key, 'documents.read.own') AS "documents.read.own",
       test.holds(key, 'documentsx.read') AS "documentsx.read",
       test.holds(key, 'document') AS document,
       test.holds(key, 'anything') AS anything,
       test.holds(key, 'NOT anything') AS "NOT anything"
  FROM wild
 ORDER BY n;

-- NULL asks for nothing; a denial consumes nothing and says nothing of usage.
SELECT count(*) FROM apikey_plan_create('Permissions', 100, 'year', plan_id => 'permissions');
SELECT id, api_key FROM apikey_create('meter', plan_id => 'permissions', permissions => '{read}') \gset
SELECT code, current_usage FROM apikey_verify(:'api_key', permissions => NULL);
SELECT code, current_usage FROM apikey_verify(:'api_key', permissions => 'read AND write');
SELECT code, current_usage FROM apikey_verify(:'api_key', permissions => 'read AND NOT write');

-- What cannot be parsed is an error that says where.
CREATE TEMP TABLE broken (n int GENERATED ALWAYS AS IDENTITY, expression text);
INSERT INTO broken (expression) VALUES
    (''), ('   '), (E'\n'),
    ('read AND'), ('read OR '), ('NOT'), ('!'), ('read AND NOT'), ('AND'), ('AND read'), ('OR read'),
    ('& read'), ('read AND OR write'), ('read && write'), ('read || write'), ('read AND AND write'),
    ('read write'), ('read NOT write'), ('read (write)'), ('(read) write'), ('(read) (write)'), ('read!write'),
    ('('), (')'), ('()'), ('(read'), ('read)'), ('((read)'), ('(read))'), (')read('), ('(read AND)'),
    ('(read OR (write AND docs)'), ('read AND ()'), ('NOT (NOT (read)'), ('(read AND (write)) OR docs)'),
    ('read, write'), ('read;'), ('"read"'), ('docs/read'), ('read = write'), ('read@docs'), ('a+b'), ('read AND %'),
    ('é'), ('read AND é'), ('réad'), (E'read\x01'), ('read & 読む'),
    ('.'), ('.read'), ('docs.'), ('docs..read'), ('read AND docs.'), ('docs . read'),
    ('*'), ('docs.*'), ('docs.*.read'), ('read AND docs.*'), ('re*d'), ('*.*');
SELECT expression, test.complaint(format('SELECT apikey_verify(%L, permissions => %L)', :'api_key', expression))
  FROM broken
 ORDER BY n;
-- The same whatever the secret, which is not looked at.
SELECT count(*) AS asked,
       count(DISTINCT (expression, complaint)) AS complaints
  FROM (SELECT expression, test.complaint(format('SELECT apikey_verify(%L, permissions => %L)', k, expression)) AS complaint
          FROM broken, unnest(ARRAY[:'api_key', 'nonsense', NULL, (SELECT key FROM wild WHERE held = '{*}')]) k) c;
-- Also where the first part would decide: no side is left unread.
SELECT test.complaint(format('SELECT apikey_verify(%L, permissions => %L)', :'api_key', e))
  FROM unnest('{"read OR (write","NOT read AND (write","read OR docs."}'::text[]) e;
SELECT test.refusal(format('SELECT apikey_verify(%L, permissions => '''')', :'api_key'));
SELECT test.refusal(format('SELECT apikey_verify(%L, permissions => ''a,b'')', :'api_key'));

-- Bounds: 4,096 bytes, 64 parentheses.
SELECT code FROM apikey_verify(:'api_key', permissions => repeat(' ', 4092) || 'read');
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('NOT ', 1023) || 'read');
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('!', 4092) || 'read');
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('x|', 2046) || 'read');
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('x', 4096));
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('(', 64) || 'read' || repeat(')', 64));
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('(write OR ', 64) || 'read' || repeat(')', 64));
SELECT code FROM apikey_verify(:'api_key', permissions => repeat('(read) AND ', 300) || 'read');
SELECT what, test.complaint(format('SELECT apikey_verify(%L, permissions => %s)', :'api_key', e))
  FROM (VALUES (1, 'one byte more', $$repeat(' ', 4093) || 'read'$$),
               (2, '10 kB', $$repeat('read AND ', 1137) || 'read'$$),
               (3, '10 kB, in bytes', $$repeat('é', 5120)$$),
               (4, '100 MB', $$repeat('(', 100 * 1024 * 1024)$$),
               (5, '65 parentheses', $$repeat('(', 65) || 'read' || repeat(')', 65)$$),
               (6, 'never closed', $$repeat('(', 4096)$$),
               (7, 'never opened', $$repeat(')', 4096)$$),
               (8, 'negations without end', $$repeat('!', 4096)$$)) v(n, what, e)
 ORDER BY n;
CREATE TEMP TABLE compressed AS SELECT repeat('(', 100 * 1024 * 1024) AS expression;
SELECT test.complaint(format('SELECT apikey_verify(%L, permissions => c.expression) FROM compressed c', :'api_key'));
DROP TABLE compressed;
SELECT current_usage FROM apikey_usage(:'id');

-- What a key can hold.
CREATE TEMP TABLE unheld (n int GENERATED ALWAYS AS IDENTITY, permissions text[]);
INSERT INTO unheld (permissions) VALUES
    ('{""}'), ('{read,"read docs"}'), ('{docs.}'), ('{.docs}'), ('{docs..read}'), ('{docs.*.read}'), ('{do*}'),
    ('{*.docs}'), ('{*.*}'), ('{**}'), ('{docs.**}'), ('{and}'), ('{read,OR}'), ('{Not}'), ('{(read)}'), ('{"a,b"}'),
    ('{é}'), (ARRAY[repeat('x', 256)]), (ARRAY['read', repeat('x.', 127) || 'x*']);
SELECT left(permissions::text, 30) AS permissions,
       test.complaint(format('SELECT apikey_create(''k'', permissions => %L)', permissions)) AS complaint
  FROM unheld ORDER BY n;
INSERT INTO unheld (permissions) VALUES ('{read,NULL}'), ('{{read,write}}');
SELECT count(*) AS refused, count(DISTINCT u.n) AS permissions
  FROM unheld u,
       unnest(ARRAY[format('SELECT apikey_update(%L, jsonb_build_object(''permissions'', %L::text[]))', :'id', permissions),
                    format('SELECT apikey_role_create(''worse'', %L)', permissions)]) s
 WHERE test.refusal(s) ~ '^22023|^23514|^0A000';
SELECT permissions FROM apikey_get(:'id');
SELECT test.refusal($$SELECT apikey_create('k', permissions => '{docs.*.read}')$$);
SELECT length(permissions[1]) FROM apikey_create('longest', permissions => ARRAY[repeat('x', 255)]);
RESET ROLE;
SELECT test.refusal(format('UPDATE apikeys.keys SET permissions = ''{docs.*.read}'' WHERE id = %L', :'id'));
-- A row that came with others can be changed and deleted, and they grant nothing.
INSERT INTO apikeys.keys (name, start, digest, permissions, created_at)
VALUES ('restored', 'ak_0000', sha256('restored permissions'), '{"read docs",docs.*.read}', '2020-01-01 00:00+00')
RETURNING id AS restored \gset
UPDATE apikeys.keys SET name = 'renamed' WHERE id = :'restored';
SELECT name, permissions FROM apikey_update(:'restored', '{"enabled": false}');
DELETE FROM apikeys.keys WHERE id = :'restored';
SELECT name, status, permissions FROM apikey_get(:'restored');
SET ROLE regress_app;

-- Roles.
SELECT name, description, permissions, created_at = updated_at AS never_changed
  FROM apikey_role_create('reader', '{docs.read,docs.list}', 'Reads documents');
SELECT name, description, permissions FROM apikey_role_create('empty');
SELECT name, description, permissions FROM apikey_role_create('null', NULL, NULL);
SELECT name FROM apikey_role_create('zoo: Ärzte & "Co"', permissions => '{health.*}');
SELECT length(name) FROM apikey_role_create(repeat('r', 255));
SELECT left(name, 18) AS name, description, permissions FROM apikey_role_list();
SELECT left(name, 18) AS name FROM apikey_role_list(page_size => 2, page_offset => 1);
SELECT name, roles, permissions FROM apikey_create('by roles', permissions => '{own}', roles => '{reader,empty,reader}');
SELECT id, api_key, roles FROM apikey_create('by role', plan_id => 'permissions', permissions => '{own}', roles => '{reader,empty}') \gset
SELECT roles FROM apikey_get(:'id');
SELECT roles FROM apikey_list(plan_id => 'permissions') WHERE id = :'id';
SELECT roles FROM apikey_create('nulls', roles => NULL);
SELECT test.holds(:'api_key', 'own') AS own, test.holds(:'api_key', 'docs.read') AS "docs.read",
       test.holds(:'api_key', 'own AND docs.read AND docs.list AND NOT docs.write') AS "all",
       test.holds(:'api_key', 'docs.write') AS "docs.write", test.holds(:'api_key', 'reader') AS reader;

-- A change of a role, of the key's roles, by functions and by plain SQL, holds
-- at once and is taken back with its transaction.
SELECT permissions, description, updated_at > created_at AS changed FROM apikey_role_update('reader', '{"permissions": ["docs.*"]}');
SELECT test.holds(:'api_key', 'docs.write');
SELECT permissions, description FROM apikey_role_update('reader', '{"permissions": null, "description": null}');
SELECT test.holds(:'api_key', 'docs.read');
RESET ROLE;
UPDATE apikeys.roles SET permissions = '{docs.read}' WHERE name = 'reader';
SELECT test.holds(:'api_key', 'docs.read');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT test.holds(:'api_key', 'docs.read');
DELETE FROM apikeys.roles WHERE name = 'reader';
SELECT test.holds(:'api_key', 'docs.read');
ROLLBACK;
SELECT test.holds(:'api_key', 'docs.read');
SET ROLE regress_app;
SELECT roles FROM apikey_update(:'id', '{"roles": ["empty"]}');
SELECT test.holds(:'api_key', 'docs.read');
SELECT roles FROM apikey_update(:'id', '{"roles": null}');
SELECT roles FROM apikey_update(:'id', '{"roles": ["reader", "zoo: Ärzte & \"Co\""], "name": "two"}');
SELECT test.holds(:'api_key', 'docs.read AND health.records.write');
SELECT roles FROM apikey_regenerate(:'id', '1 hour');
SELECT test.holds(:'api_key', 'docs.read');

-- A deleted role grants nothing; keys keep its name, and it can be made anew.
SELECT name, permissions FROM apikey_role_delete('reader');
SELECT test.holds(:'api_key', 'docs.read') AS "docs.read", test.holds(:'api_key', 'own AND health.x') AS others;
SELECT roles FROM apikey_get(:'id');
SELECT name, roles FROM apikey_update(:'id', '{"name": "kept"}');
SELECT count(*) FROM apikey_role_create('reader', '{docs.read}');
SELECT test.holds(:'api_key', 'docs.read');
RESET ROLE;
DELETE FROM apikeys.roles WHERE name IN ('reader', 'null') RETURNING name;
SELECT test.holds(:'api_key', 'docs.read');
UPDATE apikeys.keys SET roles = ARRAY['no such role', repeat('r', 255), repeat('r', 256), repeat('r', 100000), '', 'empty'] WHERE id = :'id';
UPDATE apikeys.roles SET permissions = '{long}' WHERE name = repeat('r', 255);
SELECT test.holds(:'api_key', 'own AND long') AS held, test.holds(:'api_key', 'docs.read') AS "docs.read";

-- Many roles, many permissions, stored out of line.
INSERT INTO apikeys.roles (name, permissions)
SELECT 'many ' || r, array_agg(format('r%s.%s', r, md5(p::text))) FROM generate_series(1, 40) r, generate_series(1, 500) p GROUP BY r;
UPDATE apikeys.keys SET roles = (SELECT array_agg('many ' || r) FROM generate_series(1, 40) r) WHERE id = :'id';
SELECT count(*) FILTER (WHERE test.holds(:'api_key', format('r%s.%s', r, md5(p::text)))) AS held
  FROM unnest('{1,17,40,41}'::int[]) r, unnest('{1,500,501}'::int[]) p;
DELETE FROM apikeys.roles WHERE name LIKE 'many %';
SELECT test.holds(:'api_key', 'own') AS own, test.holds(:'api_key', 'r1.' || md5('1')) AS many;

-- What is refused, and changes nothing.
SET ROLE regress_app;
SELECT test.contents() AS before \gset
CREATE TEMP TABLE refused (n int GENERATED ALWAYS AS IDENTITY, statement text);
INSERT INTO refused (statement) VALUES
    ($$SELECT apikey_role_create(NULL)$$),
    ($$SELECT apikey_role_create('')$$),
    ($$SELECT apikey_role_create(repeat('r', 256))$$),
    ($$SELECT apikey_role_create('empty')$$),
    ($$SELECT apikey_role_create('worse', '{docs.*.read}')$$),
    ($$SELECT apikey_role_create('worse', '{read,NULL}')$$),
    ($$SELECT apikey_role_create('worse', '{{read,write}}')$$),
    ($$SELECT apikey_role_list(0)$$),
    ($$SELECT apikey_role_list(1001)$$),
    ($$SELECT apikey_role_list(page_offset => -1)$$),
    ($$SELECT apikey_role_update('no such role', '{"description": "r"}')$$),
    ($$SELECT apikey_role_update(NULL, '{"description": "r"}')$$),
    ($$SELECT apikey_role_update('empty', NULL)$$),
    ($$SELECT apikey_role_update('empty', '[]')$$),
    ($$SELECT apikey_role_update('empty', '{"name": "full"}')$$),
    ($$SELECT apikey_role_update('empty', '{"permissions": "read"}')$$),
    ($$SELECT apikey_role_update('empty', '{"permissions": ["read", null]}')$$),
    ($$SELECT apikey_role_update('empty', '{"permissions": ["read", "a b"]}')$$),
    ($$SELECT apikey_role_update('empty', '{"description": 1}')$$),
    ($$SELECT apikey_role_delete('no such role')$$),
    ($$SELECT apikey_role_delete(NULL)$$),
    ($$SELECT apikey_create('k', roles => '{no such role}')$$),
    ($$SELECT apikey_create('k', roles => '{empty,reader}')$$),
    ($$SELECT apikey_create('k', roles => '{EMPTY}')$$),
    ($$SELECT apikey_create('k', roles => ARRAY[repeat('r', 256)])$$),
    ($$SELECT apikey_create('k', roles => '{empty,NULL}')$$),
    (format('SELECT apikey_update(%L, %L)', :'id', '{"roles": ["empty", "no such role", "nor this"]}')),
    (format('SELECT apikey_update(%L, %L)', :'id', '{"roles": "empty"}')),
    (format('SELECT apikey_update(%L, %L)', :'id', '{"roles": [null]}'));
SELECT left(replace(r.statement, :'id', '(id)'), 70) AS statement,
       replace(test.refusal(r.statement), repeat('r', 256), '(256)') AS refusal
  FROM refused r ORDER BY r.n;
RESET ROLE;
SELECT test.refusal($$UPDATE apikeys.roles SET name = 'full' WHERE name = 'empty'$$);
SELECT test.refusal($$UPDATE apikeys.roles SET created_at = now() - interval '1 day' WHERE name = 'empty'$$);
SELECT test.refusal($$INSERT INTO apikeys.roles (name, permissions) VALUES ('worse', '{.}')$$);
SELECT test.refusal($$INSERT INTO apikeys.roles (name, permissions) VALUES ('worse', NULL)$$);
SELECT test.refusal($$TRUNCATE apikeys.roles$$);
SELECT test.contents() = :'before' AS unchanged;

DROP FUNCTION test.complaint, test.holds;

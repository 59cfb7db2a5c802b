-- What cannot be is refused, with an outcome or a proper error, repeats no
-- secret and changes nothing.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('bad');
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Bad', 10, 'year', plan_id => 'bad');
SELECT count(*) FROM apikey_user_create('bad', email => 'bad@example.com');
SELECT id, api_key FROM apikey_create('bad', plan_id => 'bad') \gset
SELECT current_usage FROM apikey_verify(:'api_key');
SELECT test.contents() AS before \gset

-- Secrets that are none.
CREATE TEMP TABLE presented (what text, key text);
INSERT INTO presented VALUES
    ('NULL', NULL),
    ('empty', ''),
    ('white space', ' '),
    ('space before', ' ' || :'api_key'),
    ('space after', :'api_key' || ' '),
    ('line feed after', :'api_key' || E'\n'),
    ('control character before', E'\x01' || :'api_key'),
    ('control character within', overlay(:'api_key' PLACING E'\x07' FROM 20)),
    ('escape sequence', E'\x1b[31m' || :'api_key'),
    ('not ASCII', overlay(:'api_key' PLACING 'é' FROM 20)),
    ('not ASCII prefix', 'é' || substr(:'api_key', 3)),
    ('other prefix', 'sk' || substr(:'api_key', 3)),
    ('no prefix', substr(:'api_key', 3)),
    ('no underscore', overlay(:'api_key' PLACING '' FROM 3 FOR 1)),
    ('hyphen in prefix', 'a-k' || substr(:'api_key', 3)),
    ('prefix of 33', repeat('p', 33) || substr(:'api_key', 3)),
    ('one less', left(:'api_key', -1)),
    ('one more', :'api_key' || '0'),
    ('half', left(:'api_key', 20)),
    ('twice', :'api_key' || :'api_key'),
    ('checksum changed', left(:'api_key', -1) || translate(right(:'api_key', 1), '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', '123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0')),
    ('body changed', overlay(:'api_key' PLACING translate(substr(:'api_key', 20, 1), '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', '123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0') FROM 20)),
    ('other case', translate(:'api_key', 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ', 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz')),
    ('quotes', ''' OR true --'),
    ('255 bytes', repeat('a', 255)),
    ('256 bytes', repeat('a', 256)),
    ('257 bytes', repeat('a', 257)),
    ('8 kB', repeat('ak_', 3000));
SELECT p.what, v.valid, v.code, v.key_id, v.current_usage
  FROM presented p, LATERAL apikey_verify(p.key) v
 ORDER BY p.what COLLATE "C";
-- The biggest one in steps: plain, and compressed in a table.
SELECT code FROM apikey_verify(repeat('a', 100 * 1024 * 1024));
SELECT code FROM apikey_verify(:'api_key' || repeat('a', 100 * 1024 * 1024));
SELECT code FROM apikey_verify(repeat(repeat('ak_', 1024), 349525));
CREATE TEMP TABLE compressed AS SELECT repeat('a', 100 * 1024 * 1024) AS key;
SELECT v.code FROM compressed c, LATERAL apikey_verify(c.key) v;
DROP TABLE compressed;
-- The key itself still works and was not charged.
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 0);

-- Costs.
SELECT c AS cost, test.refusal(format('SELECT apikey_verify(%L, cost => %L)', :'api_key', c))
  FROM unnest(ARRAY[NULL, -1, -9223372036854775808, 2147483649, 9223372036854775807]) WITH ORDINALITY AS t(c, n)
 ORDER BY n;
SELECT c AS cost, test.refusal(format('SELECT apikey_verify(''nonsense'', cost => %L)', c))
  FROM unnest(ARRAY[NULL, -1]) WITH ORDINALITY AS t(c, n)
 ORDER BY n;
SELECT current_usage FROM apikey_usage(:'id');

-- Refusals of everything else.
CREATE TEMP TABLE refused (n int GENERATED ALWAYS AS IDENTITY, statement text);
INSERT INTO refused (statement) VALUES
    ($$SELECT apikey_create(NULL)$$),
    ($$SELECT apikey_create('')$$),
    ($$SELECT apikey_create(repeat('n', 256))$$),
    ($$SELECT apikey_create('k', user_id => '')$$),
    ($$SELECT apikey_create('k', user_id => repeat('u', 256))$$),
    ($$SELECT apikey_create('k', plan_id => 'no such plan')$$),
    ($$SELECT apikey_create('k', api_id => 'no such api')$$),
    ($$SELECT apikey_create('k', api_id => NULL)$$),
    ($$SELECT apikey_create('k', expires_at => now() - interval '1 second')$$),
    ($$SELECT apikey_create('k', expires_at => now())$$),
    ($$SELECT apikey_create('k', expires_at => '-infinity')$$),
    ($$SELECT apikey_create('k', metadata => '[]')$$),
    ($$SELECT apikey_create('k', metadata => '"text"')$$),
    ($$SELECT apikey_create('k', metadata => 'null')$$),
    ($$SELECT apikey_create('k', prefix => '')$$),
    ($$SELECT apikey_create('k', prefix => 'a-b')$$),
    ($$SELECT apikey_create('k', prefix => 'é')$$),
    ($$SELECT apikey_create('k', prefix => repeat('p', 33))$$),
    ($$SELECT apikey_create('k', permissions => '{read,NULL}')$$),
    ($$SELECT apikey_create('k', enabled => NULL)$$),
    ($$SELECT apikey_create('k', allowed_ips => '{10.0.0.0/8,NULL}')$$),
    ($$SELECT apikey_create('k', permissions => '{{a,b}}')$$),
    ($$SELECT apikey_create('k', roles => '{{a,b}}')$$),
    ($$SELECT apikey_create('k', allowed_ips => '{{10.0.0.0/8}}')$$),
    ($$SELECT apikey_create('k', credits => -1)$$),
    ($$SELECT apikey_get('no uuid')$$),
    ($$SELECT apikey_usage('00000000-0000-7000-8000-000000000000')$$),
    ($$SELECT apikey_regenerate('00000000-0000-7000-8000-000000000000')$$),
    ($$SELECT apikey_regenerate(NULL)$$),
    ($$SELECT apikey_update('00000000-0000-7000-8000-000000000000', '{"name": "k"}')$$),
    ($$SELECT apikey_update(NULL, '{"name": "k"}')$$),
    ($$SELECT apikey_delete('00000000-0000-7000-8000-000000000000')$$),
    ($$SELECT apikey_delete(NULL)$$),
    ($$SELECT apikey_list(page_size => 0)$$),
    ($$SELECT apikey_list(page_size => -1)$$),
    ($$SELECT apikey_list(page_size => 1001)$$),
    ($$SELECT apikey_list(page_size => 1000000)$$),
    ($$SELECT apikey_list(page_size => NULL)$$),
    ($$SELECT apikey_list(page_offset => -1)$$),
    ($$SELECT apikey_list(page_offset => NULL)$$),
    ($$SELECT apikey_list(metadata => '[]')$$),
    ($$SELECT apikey_count(metadata => '1')$$),
    ($$SELECT apikey_requests('00000000-0000-7000-8000-000000000000', 0)$$),
    ($$SELECT apikey_requests('00000000-0000-7000-8000-000000000000', 1001)$$),
    ($$SELECT apikey_plan_list(page_size => 0)$$),
    ($$SELECT apikey_plan_list(page_offset => -1)$$),
    ($$SELECT apikey_user_list(page_size => 1000000)$$),
    ($$SELECT apikey_user_list(metadata => 'true')$$),
    ($$SELECT apikey_user_requests('bad', 0)$$),
    ($$SELECT apikey_plan_create(NULL)$$),
    ($$SELECT apikey_plan_create('')$$),
    ($$SELECT apikey_plan_create('p', plan_id => '')$$),
    ($$SELECT apikey_plan_create('p', plan_id => repeat('p', 256))$$),
    ($$SELECT apikey_plan_create('p', -2)$$),
    ($$SELECT apikey_plan_create('p', 1, 'fortnight')$$),
    ($$SELECT apikey_plan_create('p', 1, 'Month')$$),
    ($$SELECT apikey_plan_create('p', 1, NULL)$$),
    ($$SELECT apikey_plan_create('p', is_active => NULL)$$),
    ($$SELECT apikey_plan_create('p', metadata => '[]')$$),
    ($$SELECT apikey_plan_create('p', key_lifetime => '0')$$),
    ($$SELECT apikey_plan_create('p', key_lifetime => '-1 day')$$),
    ($$SELECT apikey_plan_create('p', key_lifetime => '10000 years 1 day')$$),
    ($$SELECT apikey_plan_create('p', max_keys_per_user => -1)$$),
    ($$SELECT apikey_plan_create('p', plan_id => 'bad')$$),
    ($$SELECT apikey_plan_update('no such plan', '{"name": "p"}')$$),
    ($$SELECT apikey_plan_delete('no such plan')$$),
    ($$SELECT apikey_plan_delete(NULL)$$),
    ($$SELECT apikey_plan_usage('no such plan')$$),
    ($$SELECT apikey_user_create(NULL)$$),
    ($$SELECT apikey_user_create('')$$),
    ($$SELECT apikey_user_create(repeat('u', 256))$$),
    ($$SELECT apikey_user_create(repeat('é', 128))$$),
    ($$SELECT apikey_user_create('bad')$$),
    ($$SELECT apikey_user_create('worse', email => 'bad@example.com')$$),
    ($$SELECT apikey_user_create('worse', email => 'BAD@Example.com')$$),
    ($$SELECT apikey_user_create('worse', email => 'no address')$$),
    ($$SELECT apikey_user_create('worse', plan_id => 'no such plan')$$),
    ($$SELECT apikey_user_create('worse', custom_start => 'infinity')$$),
    ($$SELECT apikey_user_create('worse', metadata => '"text"')$$),
    ($$SELECT apikey_user_update('no such user', '{"name": "u"}')$$),
    ($$SELECT apikey_user_delete('no such user')$$),
    ($$SELECT apikey_user_delete(NULL)$$),
    ($$SELECT apikey_user_usage('no such user')$$);
SELECT r.statement, test.refusal(r.statement) FROM refused r ORDER BY r.n;

-- Patches.
TRUNCATE refused;
INSERT INTO refused (statement)
SELECT format('SELECT apikey_update(%L, %L)', :'id', patch)
  FROM unnest(ARRAY[NULL, '[]', '"text"', '1', 'null',
    '{"nmae": "typo"}', '{"id": "x"}', '{"digest": "x"}', '{"start": "x"}',
    '{"created_at": "2020-01-01"}', '{"deleted_at": "2020-01-01"}',
    '{"name": "good", "status": "deleted"}',
    '{"name": null}', '{"enabled": null}', '{"api_id": null}',
    '{"name": 5}', '{"name": ""}', '{"name": {"a": 1}}', '{"user_id": 7}', '{"user_id": ""}',
    '{"enabled": "yes"}', '{"enabled": 1}', '{"permissions": "read"}',
    '{"permissions": ["read", null]}', '{"permissions": ["read", 1]}',
    '{"permissions": {"read": true}}', '{"permissions": [["read"]]}',
    '{"allowed_ips": "10.0.0.0/8"}', '{"allowed_ips": ["10.0.0.1/8"]}',
    '{"allowed_ips": ["everywhere"]}', '{"allowed_ips": [null]}',
    '{"metadata": []}', '{"metadata": "text"}',
    '{"expires_at": "next summer"}', '{"expires_at": 1893456000}',
    '{"expires_at": "2030-02-30"}',
    '{"plan_id": "no such plan"}', '{"api_id": "no such api"}',
    '{"name": "good", "plan_id": "no such plan"}']::jsonb[])
       WITH ORDINALITY AS t(patch, n)
 ORDER BY n;
INSERT INTO refused (statement) VALUES (format('SELECT apikey_update(%L, %L)', :'id', jsonb_build_object('name', repeat('n', 256)))),
    (format('SELECT apikey_update(%L, %L)', :'id', jsonb_build_object('user_id', repeat('é', 128))));
SELECT substr(r.statement, 62, 60) AS patch, test.refusal(r.statement) FROM refused r ORDER BY r.n;

TRUNCATE refused;
INSERT INTO refused (statement)
SELECT format('SELECT apikey_plan_update(%L, %L)', 'bad', patch)
  FROM unnest(ARRAY[NULL, '[]', '{"id": "x"}', '{"name": null}',
    '{"request_period": null}', '{"is_active": null}',
    '{"max_requests": -2}', '{"max_requests": "10"}', '{"max_requests": 1.5}',
    '{"max_requests": 9223372036854775808}', '{"request_period": "decade"}',
    '{"is_active": "yes"}', '{"key_lifetime": "soon"}',
    '{"key_lifetime": "-1 day"}', '{"key_lifetime": 30}',
    '{"max_keys_per_user": -1}', '{"max_keys_per_user": 2147483648}',
    '{"metadata": []}', '{"description": 1}']::jsonb[])
       WITH ORDINALITY AS t(patch, n)
 ORDER BY n;
INSERT INTO refused (statement)
SELECT format('SELECT apikey_user_update(%L, %L)', 'bad', patch)
  FROM unnest(ARRAY[NULL, '[]', '{"id": "x"}', '{"subject_id": "x"}',
    '{"is_disabled": null}', '{"is_disabled": 0}', '{"email": "no address"}',
    '{"email": 1}', '{"plan_id": "no such plan"}', '{"custom_start": "infinity"}',
    '{"custom_start": "yesterday evening"}', '{"metadata": "text"}']::jsonb[])
       WITH ORDINALITY AS t(patch, n)
 ORDER BY n;
SELECT substr(r.statement, 8) AS statement, test.refusal(r.statement) FROM refused r ORDER BY r.n;

-- Nothing changed, the keys that creation tried included.
SELECT test.contents() = :'before' AS unchanged;
SELECT current_usage FROM apikey_usage(:'id');

-- Plain writes meet the same checks.
RESET ROLE;
SELECT test.refusal($$UPDATE apikeys.plans SET id = 'worse' WHERE id = 'bad'$$);
SELECT test.refusal($$UPDATE apikeys.plans SET created_at = now() WHERE id = 'bad'$$);
SELECT test.refusal($$INSERT INTO apikeys.plans (id, name, request_period) VALUES ('worse', 'w', 'eon')$$);
SELECT test.refusal($$UPDATE apikeys.users SET id = 'worse' WHERE id = 'bad'$$);
SELECT test.refusal($$UPDATE apikeys.users SET subject_id = gen_random_uuid() WHERE id = 'bad'$$);
SELECT test.refusal($$UPDATE apikeys.users SET created_at = now() WHERE id = 'bad'$$);
SELECT test.refusal($$INSERT INTO apikeys.users (id, email) VALUES ('worse', 'x')$$);
SELECT test.refusal($$INSERT INTO apikeys.users (id, plan_id) VALUES ('worse', 'no such plan')$$);
-- A plan that there is not is refused as such, not for what it would allow.
SELECT test.refusal($$INSERT INTO apikeys.keys (name, digest, start, user_id, plan_id) VALUES ('k', sha256(''), 'ak_0000', 'bad', 'no such plan')$$);
SELECT test.refusal(format('UPDATE apikeys.keys SET user_id = ''bad'', plan_id = ''no such plan'' WHERE id = %L', :'id'));
SELECT test.refusal(format('UPDATE apikeys.keys SET id = gen_random_uuid() WHERE id = %L', :'id'));
SELECT test.refusal(format('UPDATE apikeys.keys SET created_at = now() WHERE id = %L', :'id'));
SELECT test.contents() = :'before' AS unchanged;

-- The settings.
SELECT test.refusal($$SET apikeys.default_prefix = 'a-b'$$);
SELECT test.refusal($$SET apikeys.default_prefix = ''$$);
SELECT test.refusal(format('SET apikeys.default_prefix = %L', repeat('p', 33)));

-- No message repeats the secret, nor a value that might be one.
SELECT count(*) AS refused,
       count(*) FILTER (WHERE position(substr(:'api_key', 8) IN test.refusal(s)) > 0) AS leaks
  FROM unnest(ARRAY[
    format('SELECT apikey_verify(%L, cost => NULL)', :'api_key'),
    format('SELECT apikey_verify(%L, cost => -1)', :'api_key'),
    format('SELECT apikey_verify(%L, permissions => %L)', :'api_key', :'api_key' || ' (' || :'api_key'),
    format('SELECT apikey_verify(%L, on_abort => ''never'')', :'api_key'),
    format('SELECT apikey_verify(%L, charges => ''[]'')', :'api_key'),
    format('SELECT apikey_create(''k'', prefix => %L)', :'api_key'),
    format('SELECT apikey_update(%L, jsonb_build_object(''expires_at'', %L))', :'id', :'api_key'),
    format('SELECT apikey_update(%L, jsonb_build_object(''allowed_ips'', ARRAY[%L]))', :'id', :'api_key'),
    format('SELECT apikey_update(%L, jsonb_build_object(''metadata'', %L))', :'id', :'api_key')]) s
 WHERE test.refusal(s) <> 'not refused';

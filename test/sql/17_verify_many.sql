-- Many secrets in one call: one row each, in order, as single calls would say.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Two', 2, 'year', 'many-2');
SELECT id AS a, api_key AS a_key FROM apikey_create('a', plan_id => 'many-2') \gset
SELECT id AS b, api_key AS b_key FROM apikey_create('b') \gset
SELECT status FROM apikey_update(:'b', '{"enabled": false}');
SELECT ordinality AS n, valid, code, name, current_usage, remaining
  FROM apikey_verify_many(ARRAY[:'a_key', 'nonsense', :'b_key', NULL, :'a_key', '', :'a_key'], '/many', 'POST', '192.0.2.7')
       WITH ORDINALITY;
SELECT current_usage FROM apikey_usage(:'a');
SELECT count(*) FROM apikey_verify_many('{}');
SELECT test.refusal('SELECT * FROM apikey_verify_many(NULL)');
SELECT test.refusal($$SELECT * FROM apikey_verify_many('{{a},{b}}')$$);
RESET ROLE;
CALL test.until(format('(SELECT count(*) = 4 FROM apikeys.requests WHERE key_id IN (%L, %L))', :'a', :'b'));
SELECT k.name, r.endpoint, r.method, r.code, r.ip_address
  FROM apikeys.requests r JOIN apikeys.keys k ON k.id = r.key_id WHERE k.id IN (:'a', :'b') ORDER BY r.timestamp;

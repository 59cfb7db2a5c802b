-- Where a key was found last time is a hint: what is there now decides.
-- In a database of its own, where rows can be put anywhere.
\set VERBOSITY terse
CREATE DATABASE regress_hints;
\c regress_hints
SET client_min_messages = warning;
CREATE EXTENSION apikeys CASCADE;

ALTER TABLE apikeys.keys DISABLE TRIGGER ALL;
SELECT api_key AS a FROM apikey_create('a') \gset
SELECT api_key AS b FROM apikey_create('b') \gset

-- Found by the index, then by the hint, with and without its buffer.
SELECT v.name, v.code FROM generate_series(1, 20) n, apikey_verify(:'a') v
 GROUP BY v.name, v.code;

-- An update of other columns leaves the hint good: HOT.
SELECT ctid AS before FROM apikeys.keys WHERE name = 'a' \gset
UPDATE apikeys.keys SET last_used_at = now() WHERE name = 'a';
SELECT ctid <> :'before' AS moved FROM apikeys.keys WHERE name = 'a';
SELECT name, code FROM apikey_verify(:'a');
UPDATE apikeys.keys SET enabled = false WHERE name = 'a';
SELECT name, code FROM apikey_verify(:'a');
UPDATE apikeys.keys SET enabled = true WHERE name = 'a';
SELECT name, code FROM apikey_verify(:'a');

-- A row that has moved out of its chain is found by the index.
UPDATE apikeys.keys SET user_id = 'somebody' WHERE name = 'a';
SELECT name, code, user_id FROM apikey_verify(:'a');
SELECT name, code, user_id FROM apikey_verify(:'a');

-- Another row where a key was: they change places.
CREATE TABLE made AS
SELECT k.name, k.api_key FROM generate_series(1, 50) n, apikey_create('d' || n) k;
SELECT count(*) FROM made m, apikey_verify(m.api_key) v WHERE v.name = m.name;
CLUSTER apikeys.keys USING keys_digest_key;
SELECT count(*) FROM made m, apikey_verify(m.api_key) v WHERE v.name = m.name;
SELECT count(*) FROM made m, apikey_verify(m.api_key) v WHERE v.name = m.name;

-- A place that is gone.
SELECT code FROM apikey_verify(:'b');
ALTER TABLE apikeys.limits DISABLE TRIGGER ALL;
TRUNCATE apikeys.keys CASCADE;
SELECT code FROM apikey_verify(:'b');

\c contrib_regression
DROP DATABASE regress_hints;

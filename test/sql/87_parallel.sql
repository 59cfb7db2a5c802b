-- What reads the meter or the latest rows goes into no parallel plan, where
-- neither can be had.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('parallel');
SELECT count(*) FROM apikey_plan_create('Parallel', 1000, 'year', plan_id => 'parallel');
SELECT count(*) FROM apikey_user_create('polly', plan_id => 'parallel');
SELECT id, api_key FROM apikey_create('mine', 'polly', credits => 10, api_id => 'parallel') \gset
SELECT code, current_usage FROM apikey_verify(:'api_key');

-- Of the two names, the first is of PostgreSQL 15.
SELECT name AS parallel FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query') \gset
SET :parallel = on;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SELECT name, credits FROM apikeys.key_objects WHERE api_id = 'parallel';
SELECT current_usage FROM apikeys.live_usage WHERE subject_id = (SELECT subject_id FROM apikeys.users WHERE id = 'polly');
SELECT id, plan_id FROM apikeys.user_objects WHERE id = 'polly';
SELECT k.name, u.current_usage FROM apikeys.keys k, apikey_usage(k.id) u WHERE k.api_id = 'parallel';
SELECT u.current_usage FROM apikeys.users s, apikey_user_usage(s.id) u WHERE s.id = 'polly';
SELECT k.name, (SELECT v.code FROM apikey_verify(:'api_key') v) FROM apikeys.keys k WHERE k.api_id = 'parallel';
SELECT name FROM apikey_list('polly');
SELECT id FROM apikey_user_list() WHERE id = 'polly';
SELECT count(*) FROM apikey_erase_user('polly');
RESET :parallel;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;

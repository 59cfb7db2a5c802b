-- Rates: several named ones, on plans, users and keys, all or nothing. An
-- emission interval of a day keeps the clock out of the answers.
\set SHOW_CONTEXT never
SET ROLE regress_app;
CREATE FUNCTION pg_temp.shown(limits jsonb) RETURNS text LANGUAGE sql AS $$
SELECT string_agg(format('%s %s %s/%s%s', l ->> 'kind', l ->> 'name', l ->> 'remaining', coalesce(l ->> 'limit', '-'),
                         CASE WHEN (l ->> 'refused')::boolean THEN ' refused' END), ', ' ORDER BY n)
  FROM jsonb_array_elements(limits) WITH ORDINALITY AS x (l, n)
$$;
SELECT count(*) FROM apikey_plan_create('Rated', 100, 'year', 'rated');
SELECT name, amount, period, burst, auto_apply, plan_id FROM apikey_limit_set('burst', 3, '3 days', plan_id => 'rated');
SELECT name, burst, auto_apply FROM apikey_limit_set('tokens', 10, '10 days', 20, false, plan_id => 'rated');
SELECT id, api_key FROM apikey_create('rated', 'rita', 'rated') \gset

-- Applied by itself, or only where the call names it; shown where charges is given.
SELECT code, current_usage, limits FROM apikey_verify(:'api_key');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{}');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"burst": 0, "tokens": 15}');
-- All or nothing: one that refuses leaves the others alone.
SELECT code, retry_after BETWEEN '9 days' AND '10 days' AS in_days, pg_temp.shown(limits)
  FROM apikey_verify(:'api_key', charges => '{"tokens": 15}');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"tokens": 5, "quota": 90}');
SELECT code, retry_after > '0' AS later, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{}');
-- A rate comes before a quota; what can never pass has no time to wait for.
SELECT code, retry_after, pg_temp.shown(limits) FROM apikey_verify(:'api_key', cost => 200, charges => '{}');
SELECT code, retry_after > '0' AS later, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"burst": 0, "quota": 10}');
SELECT code, retry_after, pg_temp.shown(limits) FROM apikey_verify(:'api_key', charges => '{"burst": 0, "quota": 101}');
-- No cost: looked at, not consumed, whatever is used up.
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'api_key', cost => 0, charges => '{}');
SELECT current_usage, remaining, pg_temp.shown(limits) FROM apikey_usage(:'id');

-- The key's own rate stands in for its user's of that name, the user's for the
-- plan's; a user's is shared by the user's keys.
SELECT count(*) FROM apikey_user_create('rolf', plan_id => 'rated');
SELECT id AS a, api_key AS a_key FROM apikey_create('a', 'rolf') \gset
SELECT id AS b, api_key AS b_key FROM apikey_create('b', 'rolf') \gset
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'a_key', charges => '{}');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'b_key', charges => '{}');
SELECT burst FROM apikey_limit_set('burst', 5, '5 days', user_id => 'rolf');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'b_key', charges => '{}');
SELECT burst FROM apikey_limit_set('burst', 2, '2 days', key_id => :'a');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'a_key', charges => '{}');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'b_key', charges => '{}');
SELECT pg_temp.shown(limits) FROM apikey_user_usage('rolf');
SELECT name, amount FROM apikey_limit_list(key_id => :'a');
SELECT name FROM apikey_limit_delete('burst', key_id => :'a');
SELECT count(*) FROM apikey_limit_list(key_id => :'a');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'a_key', charges => '{}');
-- A smaller rate takes over where the old one stood, no worse than used up.
SELECT burst FROM apikey_limit_set('burst', 1, '1 second', user_id => 'rolf');
SELECT code, retry_after BETWEEN '0' AND '1 second' AS soon FROM apikey_verify(:'a_key', cost => 1);

-- Where nothing is limited, rates need no plan.
SELECT id AS c, api_key AS c_key FROM apikey_create('c') \gset
SELECT burst FROM apikey_limit_set('own', 1, '1 day', key_id => :'c');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'c_key', charges => '{}');
SELECT code, current_usage FROM apikey_verify(:'c_key');
RESET ROLE;
SELECT has_limits FROM apikeys.keys WHERE id = :'c';
DELETE FROM apikeys.limits WHERE key_id = :'c';
SELECT has_limits FROM apikeys.keys WHERE id = :'c';
SET ROLE regress_app;
SELECT code FROM apikey_verify(:'c_key');

-- What is refused changes nothing.
SELECT s.charges, test.refusal(format('SELECT apikey_verify(%L, charges => %L)', :'api_key', s.charges)) AS refusal
  FROM unnest(ARRAY['[]', '1', '{"tokens": -1}', '{"tokens": 1.5}', '{"tokens": "1"}', '{"tokens": null}',
                    '{"tokens": 2147483649}', '{"nope": 1}', '{"": 1}']) AS s (charges);
SELECT s.arguments, test.refusal(format('SELECT apikey_limit_set(%s)', s.arguments)) AS refusal
  FROM unnest(ARRAY[
    $$'x', 0, '1 day', plan_id => 'rated'$$, $$'x', -1, '1 day', plan_id => 'rated'$$,
    $$'x', 1, '0', plan_id => 'rated'$$, $$'x', 1, '-1 day', plan_id => 'rated'$$,
    $$'x', 1, '1 month', plan_id => 'rated'$$, $$'x', 1, '1 year -1 day', plan_id => 'rated'$$, $$'x', 1, '1 day', 0, plan_id => 'rated'$$,
    $$'x', 1, '1 day', 1000000, plan_id => 'rated'$$, $$'x', 2000000, '1 millisecond', plan_id => 'rated'$$,
    $$'', 1, '1 day', plan_id => 'rated'$$, $$'quota', 1, '1 day', plan_id => 'rated'$$,
    $$'x', 1, '1 day'$$, $$'x', 1, '1 day', plan_id => 'rated', user_id => 'rolf'$$,
    $$'x', 1, '1 day', plan_id => 'nope'$$, $$'x', 1, '1 day', user_id => 'nope'$$,
    $$'x', 1, '1 day', key_id => '00000000-0000-7000-8000-000000000000'$$,
    $$NULL, 1, '1 day', plan_id => 'rated'$$, $$'x', NULL, '1 day', plan_id => 'rated'$$]) AS s (arguments);
SELECT count(*) FROM generate_series(3, 8) n, LATERAL apikey_limit_set('n' || n, 1, '1 day', plan_id => 'rated');
SELECT test.refusal($$SELECT apikey_limit_set('ninth', 1, '1 day', plan_id => 'rated')$$);
SELECT test.refusal($$SELECT apikey_limit_delete('ninth', plan_id => 'rated')$$);
RESET ROLE;
SELECT test.refusal('TRUNCATE apikeys.limits');
-- A burst that equals the amount follows it, however that is changed.
INSERT INTO apikeys.limits (user_id, name, amount, period) VALUES ('rolf', 'plain', 5, '5 days'), ('rolf', 'twin', 5, '5 days');
INSERT INTO apikeys.limits (user_id, name, amount, period, burst) VALUES ('rolf', 'wide', 5, '5 days', 9);
UPDATE apikeys.limits SET amount = 1 WHERE user_id = 'rolf' AND name IN ('plain', 'wide') RETURNING name, amount, burst;
SELECT l ->> 'limit' AS burst FROM apikey_verify(:'b_key', cost => 0, charges => '{}'), jsonb_array_elements(limits) l WHERE l ->> 'name' = 'plain';
UPDATE apikeys.limits SET amount = 3 WHERE user_id = 'rolf' AND name = 'plain' RETURNING name, amount, burst;
-- Not one that the statement sets as well, nor one that was another before.
UPDATE apikeys.limits SET amount = 2, burst = 3 WHERE user_id = 'rolf' AND name = 'plain' RETURNING name, amount, burst;
UPDATE apikeys.limits SET amount = 2, burst = 5 WHERE user_id = 'rolf' AND name = 'twin' RETURNING name, amount, burst;
UPDATE apikeys.limits SET amount = 9 WHERE user_id = 'rolf' AND name = 'wide' RETURNING name, amount, burst;
UPDATE apikeys.limits SET burst = 4 WHERE user_id = 'rolf' AND name = 'wide' RETURNING name, amount, burst;
UPDATE apikeys.limits SET amount = 7, burst = NULL WHERE user_id = 'rolf' AND name = 'twin' RETURNING name, amount, burst;
INSERT INTO apikeys.limits (user_id, name, amount, period) VALUES ('rolf', 'twin', 8, '5 days')
    ON CONFLICT (user_id, name) DO UPDATE SET amount = excluded.amount RETURNING name, amount, burst;
SELECT test.refusal($$UPDATE apikeys.limits SET amount = 0 WHERE user_id = 'rolf' AND name = 'twin'$$);
SELECT name, amount, burst FROM apikey_limit_set('twin', 2, '5 days', 8, user_id => 'rolf');
SELECT name, amount, burst FROM apikey_limit_set('twin', 3, '5 days', user_id => 'rolf');
DELETE FROM apikeys.limits WHERE user_id = 'rolf' AND name IN ('plain', 'wide', 'twin');

-- A rate of one's own that does not apply by itself still stands in for the
-- plan's; the history holds what the quota was charged.
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Own', 100, 'year', 'own');
SELECT count(*) FROM apikey_limit_set('own', 3, '3 days', plan_id => 'own');
SELECT id AS e, api_key AS e_key FROM apikey_create('e', plan_id => 'own') \gset
SELECT count(*) FROM apikey_limit_set('own', 9, '9 days', auto_apply => false, key_id => :'e');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'e_key', charges => '{"quota": 7}');
SELECT code, pg_temp.shown(limits) FROM apikey_verify(:'e_key', charges => '{"own": 2}');
RESET ROLE;
CALL test.until(format('(SELECT count(*) = 2 FROM apikeys.requests WHERE key_id = %L)', :'e'));
SELECT cost FROM apikeys.requests WHERE key_id = :'e' ORDER BY timestamp;
-- Unlimited shows no figure, in the view too.
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Free', plan_id => 'limits-free');
SELECT id AS f, api_key AS f_key FROM apikey_create('f', plan_id => 'limits-free') \gset
SELECT code, remaining FROM apikey_verify(:'f_key');
RESET ROLE;
SELECT current_usage, "limit", remaining FROM apikeys.live_usage WHERE key_id = :'f';
-- Replaced by a faster one, a rate that was used up does not refuse for as long
-- as the slow one would have.
SET ROLE regress_app;
SELECT id AS g, api_key AS g_key FROM apikey_create('g') \gset
SELECT count(*) FROM apikey_limit_set('r', 1, '1 day', key_id => :'g');
SELECT v.code FROM generate_series(1, 2) n, LATERAL apikey_verify(:'g_key', n::text) v;
SELECT count(*) FROM apikey_limit_set('r', 10, '1 s', 1, key_id => :'g');
SELECT code, retry_after <= '100 ms' AS soon FROM apikey_verify(:'g_key');
RESET ROLE;
CALL test.until(format('(apikey_verify(%L)).valid', :'g_key'));

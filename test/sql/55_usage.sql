-- Quotas and usage: which plan applies, who shares a count, what a change of
-- the plan does to it.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Three', 3, 'year', 'usage-3');
SELECT count(*) FROM apikey_plan_create('Five', 5, 'year', 'usage-5');
SELECT count(*) FROM apikey_plan_create('Unlimited', -1, 'year', 'usage-unlimited');
SELECT count(*) FROM apikey_plan_create('Nothing', 0, 'year', 'usage-0');
SELECT count(*) FROM apikey_user_create('una', plan_id => 'usage-5');

-- A key's own plan is metered for the key.
SELECT id AS a, api_key AS a_key FROM apikey_create('a', 'una', 'usage-3') \gset
SELECT id AS b, api_key AS b_key FROM apikey_create('b', 'una', 'usage-3') \gset
SELECT v.code, v.current_usage, v."limit", v.remaining
  FROM generate_series(1, 4) n, LATERAL apikey_verify(:'a_key', tags => ARRAY[n::text]) v;
SELECT code, current_usage, remaining FROM apikey_verify(:'b_key');
SELECT key_id = :'a' AS key, user_id, plan_id, current_usage, "limit", remaining, period, subject FROM apikey_usage(:'a');

-- The user's plan is shared by the keys that have none.
SELECT id AS c, api_key AS c_key FROM apikey_create('c', 'una') \gset
SELECT id AS d, api_key AS d_key FROM apikey_create('d', 'una') \gset
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'c_key', cost => 3);
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'d_key', cost => 2);
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'c_key');
SELECT code FROM apikey_verify(:'d_key');
SELECT plan_id, current_usage, "limit", remaining, subject FROM apikey_usage(:'c');
SELECT key_id, user_id, plan_id, current_usage, "limit", remaining, period, subject FROM apikey_user_usage('una');
-- Each other user has its own.
SELECT count(*) FROM apikey_user_create('ulf', plan_id => 'usage-5');
SELECT api_key AS e_key FROM apikey_create('e', 'ulf') \gset
SELECT code, current_usage FROM apikey_verify(:'e_key');

-- The api's default plan is metered for the key.
RESET ROLE;
INSERT INTO apikeys.apis (id, default_plan_id) VALUES ('usage', 'usage-3');
SET ROLE regress_app;
SELECT id AS f, api_key AS f_key FROM apikey_create('f', 'nobody', api_id => 'usage') \gset
SELECT id AS g, api_key AS g_key FROM apikey_create('g', 'nobody', api_id => 'usage') \gset
SELECT code, current_usage, "limit", remaining, plan_id, plan_name FROM apikey_verify(:'f_key', cost => 3);
SELECT code FROM apikey_verify(:'f_key');
SELECT code, current_usage FROM apikey_verify(:'g_key');
SELECT plan_id, current_usage, "limit", remaining, subject FROM apikey_usage(:'f');
-- It comes last.
SELECT api_key AS h_key FROM apikey_create('h', 'ulf', api_id => 'usage') \gset
SELECT plan_id, current_usage FROM apikey_verify(:'h_key');
SELECT api_key AS i_key FROM apikey_create('i', 'ulf', 'usage-unlimited', api_id => 'usage') \gset
SELECT plan_id, current_usage FROM apikey_verify(:'i_key');

-- No plan, or one without a limit: counted all the same.
SELECT id AS j, api_key AS j_key FROM apikey_create('j') \gset
SELECT code, current_usage, "limit", remaining, plan_id FROM apikey_verify(:'j_key', cost => 1000000);
SELECT code, current_usage, "limit", remaining, plan_id FROM apikey_verify(:'j_key', cost => 2147483647);
SELECT current_usage, "limit", remaining, plan_id, subject FROM apikey_usage(:'j');
SELECT id AS k, api_key AS k_key FROM apikey_create('k', plan_id => 'usage-unlimited') \gset
SELECT code, current_usage, "limit", remaining, period FROM apikey_verify(:'k_key', cost => 1000000);
SELECT current_usage, "limit", remaining, period FROM apikey_usage(:'k');
-- A limit of 0 admits nothing.
SELECT id AS l, api_key AS l_key FROM apikey_create('l', plan_id => 'usage-0') \gset
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'l_key');

-- A lowered limit: nothing remains, never less. A raised one: at once.
SELECT count(*) FROM apikey_plan_create('Moving', 10, 'year', 'usage-moving');
SELECT id AS m, api_key AS m_key FROM apikey_create('m', plan_id => 'usage-moving') \gset
SELECT code, current_usage, remaining FROM apikey_verify(:'m_key', cost => 6);
SELECT count(*) FROM apikey_plan_update('usage-moving', '{"max_requests": 4}');
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'m_key');
SELECT current_usage, "limit", remaining FROM apikey_usage(:'m');
SELECT count(*) FROM apikey_plan_update('usage-moving', '{"max_requests": 7}');
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'m_key');
SELECT code FROM apikey_verify(:'m_key');
-- Another plan with the same period goes on with the count.
SELECT count(*) FROM apikey_plan_create('Bigger', 8, 'year', 'usage-bigger');
SELECT count(*) FROM apikey_update(:'m', '{"plan_id": "usage-bigger"}');
SELECT code, current_usage, "limit", remaining FROM apikey_verify(:'m_key');
SELECT code FROM apikey_verify(:'m_key');
-- Another period starts a new one; the old one is still there.
SELECT count(*) FROM apikey_plan_update('usage-bigger', '{"request_period": "month"}');
SELECT code, current_usage, "limit", remaining, period FROM apikey_verify(:'m_key');
SELECT count(*) FROM apikey_plan_update('usage-bigger', '{"request_period": "year"}');
SELECT code, current_usage, period FROM apikey_verify(:'m_key', cost => 0);
-- From its own plan to its user's and back.
SELECT count(*) FROM apikey_update(:'m', '{"plan_id": null, "user_id": "ulf"}');
SELECT plan_id, current_usage, subject FROM apikey_usage(:'m');
SELECT count(*) FROM apikey_update(:'m', '{"plan_id": "usage-bigger"}');
SELECT plan_id, current_usage, subject FROM apikey_usage(:'m');

-- The view shows the same live figures.
RESET ROLE;
SELECT CASE subject_id WHEN :'a' THEN 'a' WHEN :'b' THEN 'b' WHEN :'f' THEN 'f' END AS key,
       subject, user_id, plan_id, period, current_usage, "limit", remaining
  FROM apikeys.live_usage
 WHERE subject_id IN (:'a', :'b', :'f') ORDER BY 1;
SELECT l.subject, l.key_id, l.user_id, l.plan_id, l.current_usage, l."limit", l.remaining
  FROM apikeys.live_usage l JOIN apikeys.users u ON u.subject_id = l.subject_id
 WHERE u.id = 'una' AND l.period = 'year';

-- What a key counted for itself before its user had a plan is held to none any
-- more, and consumed under none.
UPDATE apikeys.apis a SET default_plan_id = p.id
  FROM apikey_plan_create('Usage default', 10, 'year', 'usage-default') p WHERE a.id = 'default';
SELECT id AS late, api_key AS late_key FROM apikey_create('late', 'usage-late') \gset
SELECT code, current_usage, remaining FROM apikey_verify(:'late_key', cost => 4);
SELECT plan_id, current_usage, "limit", remaining FROM apikeys.live_usage WHERE key_id = :'late';
SELECT keys, users, current_usage FROM apikey_plan_usage('usage-default');
SELECT plan_id FROM apikey_user_create('usage-late', plan_id => (SELECT id FROM apikey_plan_create('Usage late', 5, 'year', 'usage-late')));
SELECT code, current_usage, remaining FROM apikey_verify(:'late_key');
SELECT plan_id, current_usage, "limit", remaining FROM apikeys.live_usage WHERE key_id = :'late';
SELECT keys, users, current_usage FROM apikey_plan_usage('usage-default');
UPDATE apikeys.apis SET default_plan_id = NULL WHERE id = 'default';
SELECT keys, users, current_usage FROM apikey_plan_usage('usage-late');

-- In the end the table holds the exact counts.
CALL test.until(format($$(SELECT count(*) = 3 FROM apikeys.usage u
    WHERE (subject_id, current_usage) IN ((%L, 3), (%L, 1), (%L, 3)) AND period = 'year'
      AND subject = 'key' AND charged = current_usage)$$, :'a', :'b', :'f'));
CALL test.until($$(SELECT u.current_usage = 5 AND u.subject = 'user' FROM apikeys.usage u
    JOIN apikeys.users o USING (subject_id) WHERE o.id = 'una' AND u.period = 'year')$$);

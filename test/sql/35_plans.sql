-- Plans.
\set SHOW_CONTEXT never
SET ROLE regress_app;

SELECT id, name, description, max_requests, request_period, is_active, key_lifetime,
       max_keys_per_user, metadata, created_at = updated_at AS never_changed, deleted_at
  FROM apikey_plan_create('Free', 1000, 'day', 'plans-free', 'To try it', true, '{"tier": 0}', '30 days', 3);
-- The defaults; -1 is unlimited.
SELECT max_requests, request_period, is_active, key_lifetime, max_keys_per_user, metadata, description
  FROM apikey_plan_create('Defaults', plan_id => 'plans-defaults');
SELECT max_requests FROM apikey_plan_create('Unlimited', -1, plan_id => 'plans-unlimited');
SELECT max_requests FROM apikey_plan_create('Nothing', 0, plan_id => 'plans-nothing');
SELECT max_requests, metadata FROM apikey_plan_create('Most', 9223372036854775807, plan_id => 'plans-most', metadata => NULL);
SELECT id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' AS uuid, id AS uuid_id
  FROM apikey_plan_create('Without an id') \gset
SELECT :'uuid' AS uuid;
SELECT name FROM apikey_plan_get(:'uuid_id');
SELECT id, request_period
  FROM unnest('{minute,hour,day,week,month,year}'::text[]) WITH ORDINALITY AS t(p, n),
       LATERAL apikey_plan_create(p, 1, p, 'plans-' || p)
 ORDER BY n;

-- Get and list.
SELECT name FROM apikey_plan_get('plans-free');
SELECT count(*) FROM apikey_plan_get('no such plan');
SELECT count(*) FROM apikey_plan_get(NULL);
SELECT id FROM apikey_plan_list(1000) WHERE id LIKE 'plans-%';
SELECT array_agg(id) = array_agg(id ORDER BY id) AS in_order, count(*) > 10 AS many FROM apikey_plan_list(1000);
SELECT (SELECT array_agg(id) FROM apikey_plan_list(2, 1)) =
       (SELECT (array_agg(id))[2:3] FROM apikey_plan_list(1000)) AS page;

-- Update.
SELECT name, description, max_requests, request_period, is_active, key_lifetime,
       max_keys_per_user, metadata, updated_at > created_at AS updated
  FROM apikey_plan_update('plans-free', '{"name": "Basic"}');
SELECT name, description, max_requests, request_period, is_active, key_lifetime, max_keys_per_user, metadata
  FROM apikey_plan_update('plans-free', '{"description": "More", "max_requests": 5,
    "request_period": "hour", "is_active": false, "key_lifetime": "1 year",
    "max_keys_per_user": 7, "metadata": {"tier": 1}}');
SELECT description, max_requests, key_lifetime, max_keys_per_user, metadata
  FROM apikey_plan_update('plans-free', '{"description": null, "max_requests": null,
    "key_lifetime": null, "max_keys_per_user": null, "metadata": null}');
SELECT max_requests FROM apikey_plan_update('plans-free', '{"max_requests": 1e3}');
SELECT max_requests FROM apikey_plan_update('plans-free', '{"max_requests": -1}');

-- Delete, and create anew: the id lives on with the new values.
SELECT id, deleted_at IS NOT NULL AS deleted, updated_at = deleted_at AS updated FROM apikey_plan_delete('plans-free');
SELECT id, deleted_at IS NOT NULL AS deleted FROM apikey_plan_get('plans-free');
SELECT count(*) FROM apikey_plan_list(1000) WHERE id = 'plans-free';
SELECT count(*) FROM apikey_plan_list(1000, include_deleted => true) WHERE id = 'plans-free';
SELECT test.refusal($$SELECT apikey_plan_delete('plans-free')$$);
SELECT test.refusal($$SELECT apikey_plan_update('plans-free', '{"name": "x"}')$$);
SELECT test.refusal($$SELECT apikey_create('k', plan_id => 'plans-free')$$);
SELECT test.refusal($$SELECT apikey_user_create('u', plan_id => 'plans-free')$$);
SELECT created_at AS old_created_at FROM apikey_plan_get('plans-free') \gset
SELECT id, name, description, max_requests, request_period, is_active, key_lifetime,
       max_keys_per_user, metadata, deleted_at, created_at > :'old_created_at' AS new,
       created_at = updated_at AS never_changed
  FROM apikey_plan_create('Again', 10, 'week', 'plans-free');
SELECT test.refusal($$SELECT apikey_plan_create('Twice', plan_id => 'plans-free')$$);
SELECT name FROM apikey_plan_get('plans-free');

-- Usage: of all who have the plan together; the limit is each one's.
SELECT * FROM apikey_plan_usage('plans-free');
SELECT count(*) FROM apikey_user_create('paul', plan_id => 'plans-free');
SELECT count(*) FROM apikey_user_create('pia', plan_id => 'plans-free');
SELECT api_key AS a FROM apikey_create('a', 'paul') \gset
SELECT api_key AS b FROM apikey_create('b', 'paul') \gset
SELECT api_key AS c FROM apikey_create('c', 'pia', 'plans-free') \gset
SELECT id AS d_id, api_key AS d FROM apikey_create('d', plan_id => 'plans-free') \gset
SELECT api_key AS e FROM apikey_create('e', plan_id => 'plans-most') \gset
SELECT sum((v).current_usage) FROM (SELECT apikey_verify(k, cost => 2) AS v FROM unnest(ARRAY[:'a', :'b', :'c', :'d', :'e']) k) verified;
SELECT * FROM apikey_plan_usage('plans-free');
SELECT count(*) FROM apikey_delete(:'d_id');
SELECT count(*) FROM apikey_user_delete('pia');
SELECT keys, users FROM apikey_plan_usage('plans-free');
-- Another period is another count.
SELECT count(*) FROM apikey_plan_update('plans-free', '{"request_period": "year", "max_requests": null}');
SELECT current_usage, "limit", period FROM apikey_plan_usage('plans-free');

-- By plain SQL, for a DBA.
RESET ROLE;
INSERT INTO apikeys.plans (id, name, max_requests) VALUES ('plans-sql', 'By hand', -1)
    RETURNING id, max_requests, request_period, metadata;
UPDATE apikeys.plans SET max_requests = 3 WHERE id = 'plans-sql'
    RETURNING id, max_requests, updated_at > created_at AS updated;
UPDATE apikeys.plans SET max_requests = -1 WHERE id = 'plans-sql' RETURNING id, max_requests;
-- A restored row comes out as it went in.
INSERT INTO apikeys.plans (id, name, key_lifetime, created_at, updated_at, deleted_at)
    VALUES ('plans-restored', 'Restored', '1 day', '2020-01-01 00:00+00', '2020-02-02 00:00+00', '2020-03-03 00:00+00');
SELECT created_at = '2020-01-01 00:00+00' AND updated_at = '2020-02-02 00:00+00'
       AND deleted_at = '2020-03-03 00:00+00' AS as_it_was
  FROM apikeys.plans WHERE id = 'plans-restored';

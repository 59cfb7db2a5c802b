-- Keys: get, list, count, update, delete.
\set SHOW_CONTEXT never
INSERT INTO apikeys.apis (id) VALUES ('keys'), ('keys-2');
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Keys', plan_id => 'keys');
SELECT id AS k1 FROM apikey_create('k1', 'kim', api_id => 'keys', metadata => '{"env": "test", "tags": ["a"]}') \gset
SELECT id AS k2 FROM apikey_create('k2', 'kim', 'keys', api_id => 'keys', metadata => '{"env": "live", "tags": ["a", "b"]}') \gset
SELECT id AS k3 FROM apikey_create('k3', 'kay', 'keys', api_id => 'keys', metadata => '{"env": "live"}') \gset
SELECT id AS k4 FROM apikey_create('k4', api_id => 'keys-2', enabled => false) \gset
SELECT id AS k5 FROM apikey_create('k5', 'kay', api_id => 'keys-2', expires_at => now() + interval '1 day') \gset
SELECT id AS k6 FROM apikey_create('k6', 'kim', api_id => 'keys') \gset
SELECT count(*) FROM apikey_update(:'k5', jsonb_build_object('expires_at', now() - interval '1 day'));
SELECT count(*) FROM apikey_delete(:'k6');

-- Get: each status; an unknown id gives no row.
SELECT n, k.name, k.status
  FROM unnest(ARRAY[:'k1', :'k4', :'k5', :'k6', '00000000-0000-7000-8000-000000000000', NULL]::uuid[])
       WITH ORDINALITY AS t(id, n)
       LEFT JOIN LATERAL apikey_get(t.id) k ON true
 ORDER BY n;

-- What a key object consists of: no digest.
SELECT string_agg(f, ', ' ORDER BY n) AS fields
  FROM apikey_get(:'k1') k, json_object_keys(to_json(k)) WITH ORDINALITY AS t(f, n);

-- List and count, by each filter and by several.
SELECT name, status FROM apikey_list(api_id => 'keys');
SELECT name, status FROM apikey_list(api_id => 'keys', include_deleted => true);
SELECT name FROM apikey_list('kim');
SELECT name FROM apikey_list('kim', 'keys');
SELECT name FROM apikey_list(plan_id => 'keys');
SELECT name FROM apikey_list(metadata => '{"env": "live"}');
SELECT name FROM apikey_list(metadata => '{"tags": ["b"]}');
SELECT name FROM apikey_list('kim', 'keys', 'keys', '{"tags": ["b", "a"]}', 10, 0, NULL, false);
SELECT count(*) FROM apikey_list('nobody');
SELECT count(*) FROM apikey_list(plan_id => 'no such plan');
SELECT apikey_count(api_id => 'keys') AS api,
       apikey_count(api_id => 'keys', include_deleted => true) AS with_deleted,
       apikey_count('kim') AS "user",
       apikey_count('kim', 'keys') AS user_plan,
       apikey_count(metadata => '{"env": "live"}') AS metadata,
       apikey_count('kim', 'keys', 'keys', '{"env": "live"}', true) AS every,
       apikey_count('nobody') AS nobody;
SELECT apikey_count() = (SELECT count(*) FROM apikey_list(page_size => 1000)) AS same,
       apikey_count(include_deleted => true) - apikey_count() > 0 AS deleted_differ;

-- Pages: in the order of creation, by offset and by the last id seen.
SELECT name FROM apikey_list('kim', page_size => 1);
SELECT name FROM apikey_list('kim', page_size => 1, page_offset => 1);
SELECT name FROM apikey_list('kim', page_size => 1, page_offset => 2);
SELECT name FROM apikey_list('kim', after => :'k1');
SELECT name FROM apikey_list('kim', after => :'k2', include_deleted => true);
SELECT name FROM apikey_list('kim', page_size => 1, page_offset => 1, after => :'k1', include_deleted => true);
SELECT count(*) FROM apikey_list(page_size => 1000, page_offset => 2147483647);

-- Update: what is named changes, nothing else.
SELECT name, user_id, plan_id, api_id, status, permissions, allowed_ips, metadata, expires_at
  FROM apikey_update(:'k1', '{"name": "renamed"}');
SELECT to_jsonb(k) AS before FROM apikey_get(:'k1') k \gset
SELECT name, user_id, plan_id, api_id, status, enabled, permissions, allowed_ips, metadata,
       expires_at = '2099-01-01 00:00:00+00' AS expires_at, updated_at > created_at AS updated
  FROM apikey_update(:'k1', '{"name": "ünï ☃", "user_id": "kay", "plan_id": "keys",
    "api_id": "keys-2", "enabled": false, "permissions": ["b", "a", "b"],
    "allowed_ips": ["10.0.0.0/8", "2001:db8::/32"], "metadata": {"new": {"deep": null}},
    "expires_at": "2099-01-01T00:00:00Z"}');
SELECT to_jsonb(k) - '{name,user_id,plan_id,api_id,enabled,status,permissions,allowed_ips,metadata,expires_at,updated_at}'::text[]
     = :'before'::jsonb - '{name,user_id,plan_id,api_id,enabled,status,permissions,allowed_ips,metadata,expires_at,updated_at}'::text[] AS rest_kept
  FROM apikey_get(:'k1') k;
SELECT name, user_id, plan_id, api_id, enabled, permissions, allowed_ips, metadata, expires_at
  FROM apikey_update(:'k1', '{"user_id": null, "plan_id": null, "permissions": null,
    "allowed_ips": null, "metadata": null, "expires_at": null}');
SELECT name, enabled FROM apikey_update(:'k1', '{}');
SELECT status FROM apikey_update(:'k1', '{"enabled": true}');
-- Only the key named.
SELECT name, user_id, status FROM apikey_list(api_id => 'keys-2');
-- A plan that was deleted cannot be given.
SELECT count(*) FROM apikey_plan_create('Gone', plan_id => 'keys-gone');
SELECT count(*) FROM apikey_plan_delete('keys-gone');
SELECT test.refusal(format('SELECT apikey_update(%L, ''{"plan_id": "keys-gone"}'')', :'k1'));

-- Delete: once; then it cannot be changed any more.
SELECT name, status, deleted_at IS NOT NULL AS deleted FROM apikey_delete(:'k1');
SELECT name, status FROM apikey_get(:'k1');
SELECT count(*) FROM apikey_list(api_id => 'keys-2', after => :'k5');
SELECT s.action, replace(test.refusal(format('SELECT apikey_' || s.action, :'k1')), :'k1', '(id)') AS refusal
  FROM unnest(ARRAY['delete(%L)', 'update(%L, ''{"name": "x"}'')', 'regenerate(%L)']) AS s(action);
SELECT name, deleted_at = updated_at AS unchanged FROM apikey_get(:'k1');

-- apikey_create: the secret, what is stored of it, the key object, defaults.
\set SHOW_CONTEXT never
SET ROLE regress_app;

-- The first key makes the api "default".
SELECT id, api_key FROM apikey_create('first') \gset
SELECT length(:'api_key') AS length,
       :'api_key' ~ '^ak_[0-9A-Za-z]{38}$' AS form,
       right(:'api_key', 6) = test.checksum(left(:'api_key', -6)) AS checksum,
       substr(:'id', 15, 1) AS uuid_version;
RESET ROLE;
SELECT id, default_prefix, default_plan_id, metadata FROM apikeys.apis;

-- Stored: the digest and the start, never the secret.
SELECT k.digest = sha256(:'api_key'::bytea) AS digest,
       k.start = left(:'api_key', 7) AS start,
       position(substr(:'api_key', 8) IN k::text) AS secret_in_row
  FROM apikeys.keys k WHERE k.id = :'id';

SET ROLE regress_app;
SELECT name, api_id, user_id, plan_id, status, permissions, metadata, enabled,
       allowed_ips, expires_at, last_used_at, deleted_at, regenerated_at,
       previous_expires_at, created_at = updated_at AS never_changed
  FROM apikey_get(:'id');

-- Every argument, in the order of the reference.
RESET ROLE;
INSERT INTO apikeys.apis (id, name, default_prefix) VALUES ('create', 'Creation', 'cr_live');
SET ROLE regress_app;
SELECT plan_objects.id FROM apikey_plan_create('Creation', 100, plan_id => 'create') AS plan_objects;
SELECT role_objects.name FROM apikey_role_create('auditor', '{audit.*}') AS role_objects;
SELECT * FROM apikey_create('second', 'alice', 'create', '{"team": "blue"}',
    '2099-12-31 00:00:00+00', 'sk_test', 'create', '{read,write}', false,
    '{10.0.0.0/8,2001:db8::/32}', '{auditor}') \gset second_
SELECT :'second_name' AS name, :'second_user_id' AS user_id,
       :'second_plan_id' AS plan_id, :'second_metadata' AS metadata,
       :'second_expires_at'::timestamptz = '2099-12-31 00:00:00+00' AS expires_at,
       :'second_api_id' AS api_id, :'second_permissions' AS permissions,
       :'second_enabled' AS enabled, :'second_status' AS status,
       :'second_allowed_ips' AS allowed_ips, :'second_roles' AS roles,
       left(:'second_api_key', 8) AS prefix;
-- What was answered is what is stored.
SELECT k.* IS NOT DISTINCT FROM
       ROW(:'second_id'::uuid, :'second_api_id'::text, :'second_name'::text,
           :'second_user_id'::text, :'second_plan_id'::text, :'second_status'::text,
           :'second_start'::text, :'second_permissions'::text[],
           :'second_metadata'::jsonb, :'second_expires_at'::timestamptz,
           :'second_created_at'::timestamptz, :'second_updated_at'::timestamptz,
           NULL::timestamptz, NULL::timestamptz, :'second_enabled'::boolean,
           :'second_allowed_ips'::cidr[], NULL::timestamptz,
           NULL::timestamptz, :'second_roles'::text[],
           NULL::bigint, NULL::bigint, NULL::interval, NULL::int,
           NULL::timestamptz) AS same
  FROM apikey_get(:'second_id') k;

-- The prefix: given, else the api's, else the setting's.
SELECT left(api_key, 8) FROM apikey_create('api''s', api_id => 'create');
SET apikeys.default_prefix = 'acme';
SELECT left(api_key, 5) FROM apikey_create('setting''s');
SELECT left(api_key, 8) FROM apikey_create('api''s', api_id => 'create');
RESET apikeys.default_prefix;
SELECT left(api_key, 33) FROM apikey_create('longest', prefix => repeat('p', 32));

-- NULL stands for the default.
SELECT metadata, permissions, api_id, enabled, roles
  FROM apikey_create('nulls', metadata => NULL, permissions => NULL, roles => NULL);

-- Ids ascend in the order of creation; secrets are all different.
SELECT count(*) AS made, count(DISTINCT api_key) AS secrets,
       bool_and(ascends) AS ids_ascend,
       bool_and(right(api_key, 6) = test.checksum(left(api_key, -6))) AS checksums
  FROM (SELECT k.api_key, coalesce(k.id > lag(k.id) OVER (ORDER BY n), true) AS ascends
          FROM generate_series(1, 200) n,
               LATERAL apikey_create('many' || n, user_id => 'many') k) made;

-- How many a user may hold.
SELECT id FROM apikey_plan_create('Two', plan_id => 'create-two', max_keys_per_user => 2);
SELECT id FROM apikey_create('1', 'twice', 'create-two') \gset one_
SELECT name FROM apikey_create('2', 'twice', 'create-two');
SELECT test.refusal($$SELECT apikey_create('3', 'twice', 'create-two')$$);
SELECT name FROM apikey_create('3', 'another', 'create-two');
SELECT status FROM apikey_delete(:'one_id');
SELECT name FROM apikey_create('3', 'twice', 'create-two');

-- A key may name a user who has no row.
SELECT count(*) AS rows_of_user FROM apikey_user_get('twice');

-- Users.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Users', 10, 'year', plan_id => 'users');

SELECT id, name, email, plan_id, custom_start = '2024-01-31 10:00+00' AS custom_start,
       is_disabled, metadata, created_at = updated_at AS never_changed, deleted_at
  FROM apikey_user_create('ulla', 'Ulla', 'ulla@example.com', 'users', '2024-01-31 10:00+00', '{"a": 1}');
SELECT id, name, email, plan_id, custom_start, is_disabled, metadata FROM apikey_user_create('udo');
SELECT id, metadata FROM apikey_user_create('uwe', metadata => NULL);
-- What is shown does not tell the meter's identifier.
SELECT string_agg(f, ', ' ORDER BY n) AS fields
  FROM apikey_user_get('ulla') u, json_object_keys(to_json(u)) WITH ORDINALITY AS t(f, n);

-- Get and list.
SELECT name FROM apikey_user_get('ulla');
SELECT count(*) FROM apikey_user_get('nobody');
SELECT id FROM apikey_user_list('users');
SELECT id FROM apikey_user_list(metadata => '{"a": 1}');
SELECT id FROM apikey_user_list('users', '{"a": 1}');
SELECT count(*) FROM apikey_user_list('users', '{"a": 2}');
SELECT id FROM apikey_user_list(page_size => 1000) WHERE id LIKE 'u%';
SELECT array_agg(id) = array_agg(id ORDER BY id) AS in_order FROM apikey_user_list(page_size => 1000);
SELECT (SELECT array_agg(id) FROM apikey_user_list(page_size => 2, page_offset => 1)) =
       (SELECT (array_agg(id))[2:3] FROM apikey_user_list(page_size => 1000)) AS page;

-- Update.
SELECT name, email, plan_id, is_disabled, metadata, updated_at > created_at AS updated
  FROM apikey_user_update('ulla', '{"name": "Ursula"}');
SELECT name, email, plan_id, custom_start, is_disabled, metadata
  FROM apikey_user_update('ulla', '{"name": null, "email": null, "plan_id": null, "custom_start": null, "metadata": null}');
SELECT name, email, plan_id, custom_start = '2024-02-29 00:00+00' AS custom_start, is_disabled, metadata
  FROM apikey_user_update('ulla', '{"name": "Ulla", "email": "Ulla@Example.com", "plan_id": "users",
    "custom_start": "2024-02-29T00:00:00Z", "is_disabled": true, "metadata": {"b": [2]}}');
SELECT is_disabled FROM apikey_user_update('ulla', '{"is_disabled": false}');

-- Emails are unique among users not deleted, whatever their case.
SELECT test.refusal($$SELECT apikey_user_create('uta', email => 'ULLA@example.com')$$);
SELECT test.refusal($$SELECT apikey_user_update('udo', '{"email": "ulla@EXAMPLE.com"}')$$);
SELECT email FROM apikey_user_update('ulla', '{"email": "ulla@example.com"}');
SELECT email FROM apikey_user_get('udo');

-- Delete: the email is free at once; created anew, the user has the new values
-- and what it had consumed.
SELECT api_key FROM apikey_create('of ulla', 'ulla') \gset
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 4);
SELECT is_disabled FROM apikey_user_update('ulla', '{"is_disabled": true}');
SELECT id, deleted_at IS NOT NULL AS deleted FROM apikey_user_delete('ulla');
SELECT code FROM apikey_verify(:'api_key');
SELECT id, deleted_at IS NOT NULL AS deleted FROM apikey_user_get('ulla');
SELECT count(*) FROM apikey_user_list(plan_id => 'users');
SELECT count(*) FROM apikey_user_list(plan_id => 'users', include_deleted => true);
SELECT test.refusal($$SELECT apikey_user_delete('ulla')$$);
SELECT test.refusal($$SELECT apikey_user_update('ulla', '{"name": "x"}')$$);
SELECT id, email FROM apikey_user_create('uta', email => 'Ulla@example.com');
SELECT test.refusal($$SELECT apikey_user_create('ulla', email => 'ulla@example.com')$$);
SELECT id, name, email, plan_id, custom_start, is_disabled, metadata, deleted_at, created_at = updated_at AS new
  FROM apikey_user_create('ulla', plan_id => 'users');
SELECT test.refusal($$SELECT apikey_user_create('ulla')$$);
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 0);
SELECT count(*) FROM apikey_user_update('ulla', '{"custom_start": "2024-02-29T00:00:00Z"}');
SELECT code, current_usage FROM apikey_verify(:'api_key', cost => 0);

-- By plain SQL, for a DBA.
RESET ROLE;
INSERT INTO apikeys.users (id, email) VALUES ('uma', 'uma@example.com') RETURNING id, email, is_disabled, metadata;
UPDATE apikeys.users SET name = 'Uma' WHERE id = 'uma' RETURNING id, name, updated_at > created_at AS updated;
SELECT test.refusal($$INSERT INTO apikeys.users (id, email) VALUES ('umberto', 'UMA@example.com')$$) LIKE '23505 | %' AS refused;
-- A restored row comes out as it went in.
INSERT INTO apikeys.users (id, created_at, updated_at, deleted_at)
    VALUES ('restored', '2020-01-01 00:00+00', '2020-02-02 00:00+00', '2020-03-03 00:00+00');
SELECT created_at = '2020-01-01 00:00+00' AND updated_at = '2020-02-02 00:00+00'
       AND deleted_at = '2020-03-03 00:00+00' AS as_it_was
  FROM apikeys.users WHERE id = 'restored';

-- Where a backslash in a string is an escape, an email is no other. (In a new
-- session: another has parsed the check already.)
\c -
SET standard_conforming_strings = off;
SELECT email FROM apikey_user_create('sam', email => 'sam@sums.test');
SELECT email FROM apikey_user_update('sam', '{"email": "sam sums@sums.test"}');

-- Looking a key up by its secret, and undoing a deletion.

SELECT id, api_key FROM apikey_create('whoami', user_id => 'whoami', metadata => '{"n": 1}') \gset

-- By its secret, metering nothing and recording nothing.
SELECT id = :'id' AS is_it, name, user_id, status, metadata FROM apikey_whoami(:'api_key');
SELECT current_usage FROM apikey_usage(:'id');
SELECT count(*) FROM apikey_whoami(NULL);
SELECT count(*) FROM apikey_whoami('not a secret');
SELECT count(*) FROM apikey_whoami(overlay(:'api_key' PLACING CASE substr(:'api_key', 10, 1) WHEN 'x' THEN 'y' ELSE 'x' END FROM 10));
BEGIN READ ONLY;
SELECT name FROM apikey_whoami(:'api_key');
COMMIT;
-- What is refused is still known, unless it was deleted.
SELECT enabled FROM apikey_update(:'id', '{"enabled": false}');
SELECT status FROM apikey_whoami(:'api_key');
SELECT enabled FROM apikey_update(:'id', jsonb_build_object('enabled', true, 'expires_at', now() - interval '1 hour'));
SELECT status FROM apikey_whoami(:'api_key');
SELECT status FROM apikey_update(:'id', '{"expires_at": null}');
-- The previous secret while its grace lasts, and not after.
SELECT api_key AS second FROM apikey_regenerate(:'id', '1 hour') \gset
SELECT name FROM apikey_whoami(:'api_key');
SELECT api_key AS third FROM apikey_regenerate(:'id') \gset
SELECT count(*) FROM apikey_whoami(:'api_key');
SELECT count(*) FROM apikey_whoami(:'second');

SELECT code FROM apikey_verify(:'third');
SELECT status FROM apikey_delete(:'id');
SELECT count(*) FROM apikey_whoami(:'third');
SELECT code FROM apikey_verify(:'third');

-- Nor has one that had expired before it was deleted, which verification tells from others.
SELECT id AS expired_id, api_key AS expired FROM apikey_create('expired') \gset
UPDATE apikeys.keys SET expires_at = now() - interval '1 hour' WHERE id = :'expired_id';
SELECT status FROM apikey_whoami(:'expired');
SELECT status FROM apikey_delete(:'expired_id');
SELECT count(*) FROM apikey_whoami(:'expired');
SELECT code FROM apikey_verify(:'expired');

-- Restored, it has its secret and its usage again.
SELECT id = :'id' AS is_it, status, deleted_at FROM apikey_restore(:'id');
SELECT code, current_usage FROM apikey_verify(:'third');
SELECT replace(s.action, :'id', '(id)') AS action, replace(test.refusal(s.action), :'id', '(id)') AS refusal
  FROM unnest(ARRAY[format('SELECT apikey_restore(%L)', :'id'),
    'SELECT apikey_restore(''00000000-0000-7000-8000-000000000000'')',
    'SELECT apikey_restore(NULL)']) AS s(action);

-- A user's number of keys holds however a key comes to the user.
SELECT max_keys_per_user FROM apikey_plan_create('One', plan_id => 'one-key', max_keys_per_user => 1);
SELECT id FROM apikey_user_create('one-key', plan_id => 'one-key');
SELECT name FROM apikey_create('first', 'one-key');
SELECT test.refusal($$SELECT apikey_create('second', 'one-key')$$);
SELECT test.refusal(format('SELECT apikey_update(%L, ''{"user_id": "one-key"}'')', :'id'));
SELECT id AS spare FROM apikey_create('spare') \gset
SELECT status FROM apikey_delete(:'spare');
SELECT test.refusal(format('UPDATE apikeys.keys SET user_id = ''one-key'', deleted_at = NULL WHERE id = %L', :'spare'));
-- Nor can an UPDATE make a list of lists.
SELECT test.refusal($$UPDATE apikeys.keys SET permissions = '{{a,b}}'$$),
       test.refusal($$UPDATE apikeys.keys SET roles = '{{a,b}}'$$),
       test.refusal($$UPDATE apikeys.keys SET allowed_ips = '{{10.0.0.0/8}}'$$);
-- What does not bring another key is free.
SELECT name FROM apikey_update((SELECT id FROM apikey_list('one-key')), '{"name": "renamed"}');
SELECT test.refusal('SELECT apikey_usage(NULL)'), test.refusal('SELECT apikey_user_usage(NULL)');

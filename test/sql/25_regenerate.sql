-- apikey_regenerate: a new secret for the same key, the old one for a while.
\set SHOW_CONTEXT never
SET ROLE regress_app;
SELECT count(*) FROM apikey_plan_create('Regeneration', 100, 'year', plan_id => 'regenerate');
SELECT id, api_key AS first, to_jsonb(k) - '{api_key,start,updated_at,regenerated_at}'::text[] AS kept
  FROM apikey_create('kept', 'rita', 'regenerate', '{"a": [1, 2]}', '2099-01-01 00:00:00+00',
                     'rg', permissions => '{read}', allowed_ips => '{10.0.0.0/8}') k \gset
SELECT current_usage FROM apikey_verify(:'first', ip_address => '10.0.0.1', cost => 3);

-- Without grace the old secret stops at once; all else is kept.
SELECT api_key AS second, id = :'id' AS same_id,
       to_jsonb(k) - '{api_key,start,updated_at,regenerated_at,last_used_at}'::text[]
       = :'kept'::jsonb - 'last_used_at' AS kept,
       regenerated_at IS NOT NULL AS regenerated, previous_expires_at IS NULL AS no_grace,
       api_key <> :'first' AS new_secret,
       api_key ~ '^rg_[0-9A-Za-z]{38}$' AS form,
       right(api_key, 6) = test.checksum(left(api_key, -6)) AS checksum,
       start = left(api_key, 7) AS start
  FROM apikey_regenerate(:'id') k \gset
SELECT :'same_id' AS same_id, :'kept' AS kept, :'regenerated' AS regenerated,
       :'no_grace' AS no_grace, :'new_secret' AS new_secret,
       :'form' AS form, :'checksum' AS checksum, :'start' AS start;
SELECT code, key_id FROM apikey_verify(:'first', ip_address => '10.0.0.1');
SELECT code, key_id = :'id' AS same_id, current_usage FROM apikey_verify(:'second', ip_address => '10.0.0.1');

-- With grace both work and draw on the same balance.
SELECT api_key AS third, previous_expires_at - now() BETWEEN '1 hour' AND '1 hour 1 min' AS grace FROM apikey_regenerate(:'id', '1 hour') \gset
SELECT :'grace' AS grace;
SELECT code, current_usage, remaining FROM apikey_verify(:'second', ip_address => '10.0.0.1');
SELECT code, current_usage, remaining FROM apikey_verify(:'third', ip_address => '10.0.0.1');
-- The old one knows the key's other refusals too.
SELECT code FROM apikey_verify(:'second');
SELECT count(*) FROM apikey_update(:'id', '{"enabled": false}');
SELECT code FROM apikey_verify(:'second', ip_address => '10.0.0.1');
SELECT count(*) FROM apikey_update(:'id', '{"enabled": true}');
SELECT code FROM apikey_verify(:'second', ip_address => '10.0.0.1');

-- Only the last secret is given grace.
SELECT api_key AS fourth FROM apikey_regenerate(:'id', '1 hour') \gset
SELECT code FROM apikey_verify(:'second', ip_address => '10.0.0.1');
SELECT code FROM apikey_verify(:'third', ip_address => '10.0.0.1');
SELECT code FROM apikey_verify(:'fourth', ip_address => '10.0.0.1');

-- When the grace is over.
RESET ROLE;
UPDATE apikeys.keys SET previous_expires_at = now() WHERE id = :'id';
SET ROLE regress_app;
SELECT code FROM apikey_verify(:'third', ip_address => '10.0.0.1');
SELECT code FROM apikey_verify(:'fourth', ip_address => '10.0.0.1');

-- Without grace, an earlier grace ends too.
SELECT api_key AS fifth FROM apikey_regenerate(:'id', '1 hour') \gset
SELECT api_key AS sixth, previous_expires_at IS NULL AS no_grace FROM apikey_regenerate(:'id') \gset
SELECT :'no_grace' AS no_grace;
SELECT code FROM apikey_verify(:'fourth', ip_address => '10.0.0.1');
SELECT code FROM apikey_verify(:'fifth', ip_address => '10.0.0.1');
SELECT code, current_usage FROM apikey_verify(:'sixth', ip_address => '10.0.0.1');

-- Never beyond the key's own expiry.
SELECT id, expires_at FROM apikey_create('short', expires_at => now() + interval '1 hour') \gset short_
SELECT previous_expires_at = expires_at AND expires_at = :'short_expires_at' AS bounded
  FROM apikey_regenerate(:'short_id', '1 day');
-- An endless grace is bounded by it as well.
SELECT previous_expires_at = expires_at AS bounded FROM apikey_regenerate(:'short_id', '10000 years');

-- Undone, the old secret is the one that works.
BEGIN;
SELECT api_key AS undone FROM apikey_regenerate(:'id') \gset
SELECT code FROM apikey_verify(:'undone', ip_address => '10.0.0.1', cost => 0);
SELECT code FROM apikey_verify(:'sixth', ip_address => '10.0.0.1', cost => 0);
ROLLBACK;
SELECT code FROM apikey_verify(:'undone', ip_address => '10.0.0.1', cost => 0);
SELECT code FROM apikey_verify(:'sixth', ip_address => '10.0.0.1', cost => 0);

-- Refusals.
SELECT test.refusal(format('SELECT apikey_regenerate(%L, %L)', :'id', g))
  FROM unnest('{-1 second,NULL}'::interval[]) g;
SELECT test.refusal('SELECT apikey_regenerate(''00000000-0000-7000-8000-000000000000'')');
SELECT api_key AS seventh FROM apikey_regenerate(:'id', '1 hour') \gset
SELECT status FROM apikey_delete(:'id');
SELECT code FROM apikey_verify(:'sixth', ip_address => '10.0.0.1');
SELECT code FROM apikey_verify(:'seventh', ip_address => '10.0.0.1');
SELECT test.refusal(replace('SELECT apikey_regenerate(''ID'')', 'ID', :'id')) = format('P0002 | key "%s" does not exist | apikey_restore() undoes that.', :'id') AS refused;

-- A grace that would end after the last of all times.
SELECT id AS long FROM apikey_create('long', expires_at => '2099-01-01 00:00:00+00') \gset
SELECT previous_expires_at FROM apikey_regenerate(:'long', '170000000 years');
SELECT id AS endless FROM apikey_create('endless') \gset
SELECT previous_expires_at - interval '10000 years' BETWEEN now() - interval '2 days' AND now() + interval '2 days' AS capped
  FROM apikey_regenerate(:'endless', '170000000 years');

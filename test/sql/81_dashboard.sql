-- The dashboard: escaping, figures, who may see it, and that it costs the same
-- however many keys there are.
\set SHOW_CONTEXT never
SET timezone = 'America/New_York';
SET datestyle = 'German';

-- ----- Values in HTML -----

SELECT apikeys.html_escape('<a href="x">&amp;''</a>'), apikeys.html_escape(NULL) IS NULL AS of_null;
SELECT apikeys.html('<b title="%s">%s</b> 100%% %1$s', '"', '<&'), apikeys.html('none'), apikeys.html('[%s]', NULL);
SELECT apikeys.html_time('2026-01-02 03:04:05.6+00'), apikeys.html_time(NULL, '<never>'),
       apikeys.html_time('infinity');
SELECT n, apikeys.digits(n), apikeys.chart_top(n) FROM unnest('{0, 1, 2, 3, 9, 10, 41, 100, 101, 999999, 5000000000}'::numeric[]) n;
SELECT apikeys.html_key('01a206ce-f462-7d9d-86a0-774112bb6d8e', '<i>', 'ak_<b>'),
       apikeys.html_key('01a206ce-f462-7d9d-86a0-774112bb6d8e', NULL, NULL);
SELECT c, apikeys.outcome_class(c) FROM unnest('{VALID, RATE_LIMITED, USAGE_EXCEEDED, FORBIDDEN,
    INSUFFICIENT_PERMISSIONS, DISABLED, EXPIRED, OTHER}'::text[]) c;

-- ----- A limit -----

CREATE FUNCTION test.text_of(html text) RETURNS text
LANGUAGE sql AS $$
SELECT btrim(regexp_replace(regexp_replace(html, '<svg.*?</svg>', '', 'g'), '(\s*<[^>]*>\s*)+', ' ', 'g'))
$$;
CREATE FUNCTION test.limit_text("limit" jsonb, used bigint, granted bigint) RETURNS text
LANGUAGE sql AS $$
SELECT concat_ws(' / ', test.text_of(h), substring(h FROM 'class="((used|near|over)" width="[^"]*)"'))
  FROM apikeys.dashboard_limit("limit", ROW(NULL, NULL, NULL, used, NULL, NULL, NULL, 'day', NULL, NULL, NULL, NULL)::apikeys.usage_report, granted) h
$$;
SELECT test.limit_text(l, used, granted)
  FROM (VALUES
    (1, '{"kind": "quota", "name": "quota", "limit": null, "remaining": null, "reset_time": null}'::jsonb, 7, NULL),
    (2, '{"kind": "quota", "name": "quota", "limit": 1000, "remaining": 995, "reset_time": "2126-01-01T00:00:00Z"}', 5, NULL),
    (3, '{"kind": "quota", "name": "quota", "limit": 10, "remaining": 2, "reset_time": "2126-01-01T00:00:00Z"}', 8, NULL),
    (4, '{"kind": "quota", "name": "quota", "limit": 10, "remaining": 0, "reset_time": "2126-01-01T00:00:00Z"}', 12, NULL),
    (5, '{"kind": "quota", "name": "quota", "limit": 0, "remaining": 0, "reset_time": "2126-01-01T00:00:00Z"}', 0, NULL),
    (6, '{"kind": "credits", "name": "credits", "limit": null, "remaining": 20, "reset_time": null}', 0, 80),
    (7, '{"kind": "credits", "name": "credits", "limit": null, "remaining": 90, "reset_time": null}', 0, 80),
    (8, '{"kind": "credits", "name": "credits", "limit": null, "remaining": null, "reset_time": null}', 0, NULL),
    (9, '{"kind": "rate", "name": "<b>", "limit": 10, "remaining": 4, "reset_time": "2126-01-01T00:00:00Z"}', 0, NULL),
    (10, '{"kind": "rate", "name": "r", "limit": 10, "remaining": 10, "reset_time": "2126-01-01T00:00:00Z"}', 0, NULL))
       AS v(n, l, used, granted)
 ORDER BY n;

-- ----- Figures -----

BEGIN;
DELETE FROM apikeys.rollup_totals;
INSERT INTO apikeys.rollup_totals
SELECT s, apikeys.period_start(s, '-infinity', now()) - CASE s WHEN 'hour' THEN interval '2 hours' ELSE interval '48 hours' END, c, n, n
  FROM unnest('{hour, day}'::text[]) s, (VALUES ('VALID', 30), ('EXPIRED', 12)) AS v(c, n);
SELECT x.span, cardinality(s.series) AS buckets, x.seen
  FROM unnest('{day, month, year}'::text[]) WITH ORDINALITY AS p(span, n),
       LATERAL apikeys.dashboard_series(NULL, p.span) s,
       LATERAL (SELECT p.span, array_agg(concat_ws(' ', cardinality(s.series) - b.place, b.allowed, b.denied, b.outcomes)) AS seen
                  FROM unnest(s.series) WITH ORDINALITY AS b(bucket_start, bucket_end, allowed, denied, cost, outcomes, place)
                 WHERE b.allowed + b.denied > 0 AND p.span <> 'year') x
 ORDER BY p.n;
SELECT sum(b.allowed) AS allowed, sum(b.denied) AS denied, sum(b.cost) AS cost
  FROM unnest(apikeys.dashboard_series(NULL, 'year')) b;
SELECT (regexp_matches(apikeys_http.apikey_dashboard(), '<desc[^>]*>([^<]*)'))[1] AS description;
ROLLBACK;
SELECT cardinality(series) FROM apikeys.dashboard_series('01a206ce-f462-7d9d-86a0-774112bb6d8e', 'day');

-- ----- Pages that there are not, and who may see those that there are -----

CREATE FUNCTION test.status(id uuid = NULL, span text = 'day', page int = 1, before timestamptz = NULL) RETURNS text
LANGUAGE sql AS $$
SELECT concat_ws(' ', nullif(current_setting('response.status', true), ''), substring(h FROM '<title>(.*?)</title>'),
                 CASE WHEN h NOT LIKE '%</table>%' THEN substring(h FROM '<p>(.*?)</p>') END)
  FROM apikeys_http.apikey_dashboard(id, span, page, before) h
$$;
SELECT test.status('01a206ce-f462-7d9d-86a0-774112bb6d8e');
SELECT test.status(span => 'week');
SELECT test.status(span => NULL);
SELECT test.status(page => 0);
SELECT test.status(page => 1001);
SELECT test.status(page => NULL);
SELECT test.status(before => '-infinity');
SELECT test.status(page => 1000) LIKE '%API keys%' AS far_away;
SELECT r.rolname, has_function_privilege(r.rolname, 'apikeys_http.apikey_dashboard(uuid, text, int, timestamptz)', 'EXECUTE')
  FROM unnest('{regress_verifier, regress_viewer, regress_manager, regress_stranger}'::name[]) r(rolname);
BEGIN READ ONLY;
SELECT test.status() LIKE '%API keys%' AS in_a_get;
SELECT name, left(value, 38) AS value
  FROM jsonb_array_elements(current_setting('response.headers')::jsonb) WITH ORDINALITY AS h(header, n),
       jsonb_each_text(h.header) AS e(name, value)
 ORDER BY n;
ROLLBACK;

-- ----- As many keys as there may be -----

-- 20,000 keys, used in each of the last 3 hours, and 20,000 refusals of one of
-- them. Whole tables are not read, and of the indexes only the ends.
BEGIN;
INSERT INTO apikeys.keys (name, start, digest, last_used_at)
SELECT 'bound ' || n, 'ak_0000', sha256(('bound' || n)::bytea), now() - n * interval '1 ms'
  FROM generate_series(1, 20000) n;
INSERT INTO apikeys.rollups
SELECT k.id, 'hour', date_trunc('hour', now(), 'UTC') - h * interval '1 hour', 'VALID', CASE k.name WHEN 'bound 7' THEN 1000000 ELSE 1 END, 1
  FROM apikeys.keys k, generate_series(0, 2) h
 WHERE k.name LIKE 'bound %';
INSERT INTO apikeys.requests
SELECT now() - n * interval '1 ms', k.id, 'e', 'GET', 'denied', 'EXPIRED', NULL, 1
  FROM generate_series(1, 20000) n, apikeys.keys k
 WHERE k.name = 'bound 1';
CREATE TEMP VIEW scanned AS
SELECT CASE WHEN relname ~ '^requests' THEN 'requests' ELSE relname END AS relname, sum(seq_scan) AS whole, sum(idx_tup_fetch) AS rows
  FROM pg_stat_xact_user_tables
 WHERE relname ~ '^(keys|rollups|requests.*|usage|users)$'
 GROUP BY 1;
CREATE TEMP TABLE before AS SELECT * FROM scanned;
SELECT length(h) BETWEEN 20000 AND 200000 AS a_page FROM apikeys_http.apikey_dashboard() h;
SELECT s.relname, s.whole - b.whole AS whole,
       s.rows - b.rows < CASE s.relname WHEN 'rollups' THEN 61000 WHEN 'keys' THEN 15000 ELSE 500 END AS bounded
  FROM scanned s JOIN before b USING (relname)
 ORDER BY 1;
SELECT k.name, t.since - date_trunc('hour', now(), 'UTC') AS since, t.is_sample, cardinality(t.key_ids) AS keys,
       t.allowed[1], t.denied[1]
  FROM apikeys.top_keys(10) t JOIN apikeys.keys k ON k.id = t.key_ids[1];
SELECT test.text_of(apikeys.dashboard_top()) LIKE '%sample%' AS says_so;
INSERT INTO apikeys.rollups
SELECT k.id, 'hour', date_trunc('hour', now(), 'UTC'), c, 1, 0
  FROM apikeys.keys k, unnest('{DISABLED, EXPIRED}'::text[]) c
 WHERE k.name LIKE 'bound %';
SELECT t.since - date_trunc('hour', now(), 'UTC') AS since, t.is_sample, cardinality(t.key_ids) AS keys FROM apikeys.top_keys(10) t;
SELECT test.text_of(apikeys.dashboard_top()) LIKE '%sample%' AS says_so;
ROLLBACK;

-- Few keys: by their last use, deleted ones are left out, others are last.
BEGIN;
UPDATE apikeys.keys SET last_used_at = NULL;
SELECT id AS deleted FROM apikey_create('deleted') \gset
SELECT id AS first FROM apikey_create('first') \gset
SELECT id AS never FROM apikey_create('never') \gset
SELECT id AS second FROM apikey_create('second') \gset
UPDATE apikeys.keys SET last_used_at = now() WHERE id IN (:'first', :'deleted');
UPDATE apikeys.keys SET last_used_at = now() - interval '1 s' WHERE id = :'second';
SELECT status FROM apikey_delete(:'deleted');
SELECT array_agg(k.name ORDER BY r.n)
  FROM apikeys.recent_keys(3, 0) WITH ORDINALITY AS r(id, n) JOIN apikeys.keys k USING (id);
SELECT array_agg(k.name ORDER BY r.n)
  FROM apikeys.recent_keys(1, 1) WITH ORDINALITY AS r(id, n) JOIN apikeys.keys k USING (id);
ROLLBACK;

SELECT test.refusal('TRUNCATE apikeys.rollup_totals');

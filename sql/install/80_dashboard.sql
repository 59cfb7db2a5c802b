-- The dashboard: pages of HTML for people, made here and served by PostgREST.
--
-- Every value gets into a page through apikeys.html(template, values), which
-- escapes all of them; "||" joins only literals and what is of the domain
-- apikeys.markup. test/t/24_dashboard.pl reads this file for that. The pages
-- need no script, no image and no other file, and say so in their
-- Content-Security-Policy.
--
-- What a page costs does not depend on how many keys, requests or users there
-- are: charts read totals; of keys, those are looked at that were used in the
-- last hours or made last (apikeys.recent_keys, apikeys.top_keys, each with its
-- bound); refusals and a key's history are read from the end of an index. What the
-- planner knows of a table may be old: LATERAL with OFFSET 0 has it look keys up one
-- by one, and scans of whole tables are switched off.

CREATE DOMAIN apikeys.markup AS text;
COMMENT ON DOMAIN apikeys.markup IS 'HTML in which every value is escaped';

CREATE DOMAIN apikeys_http."text/html" AS text;
COMMENT ON DOMAIN apikeys_http."text/html" IS 'A page, served as text/html';

-- ----- Text, times and numbers -----

CREATE FUNCTION apikeys.html_escape(value text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT replace(replace(replace(replace(replace(html_escape.value,
    '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;')
$$;
COMMENT ON FUNCTION apikeys.html_escape(text) IS
'Text as it stands in HTML, between tags or in a quoted attribute.
NULL for NULL.';
REVOKE EXECUTE ON FUNCTION apikeys.html_escape(text) FROM PUBLIC;

CREATE FUNCTION apikeys.html(template text, VARIADIC "values" text[] = '{}') RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format(html.template, VARIADIC ARRAY(
    SELECT apikeys.html_escape(v.value)
      FROM unnest(html."values") WITH ORDINALITY AS v(value, place)
     ORDER BY v.place))
$$;
COMMENT ON FUNCTION apikeys.html(text, text[]) IS
'HTML of a template and values, each of them escaped.
The template is that of format(): %s for the next value, %1$s for the first. NULL is shown as nothing.';
REVOKE EXECUTE ON FUNCTION apikeys.html(text, text[]) FROM PUBLIC;

CREATE FUNCTION apikeys.html_time(moment timestamptz, absent text = '') RETURNS apikeys.markup
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN html_time.moment IS NULL THEN apikeys.html('%s', html_time.absent)
            WHEN NOT isfinite(html_time.moment) THEN apikeys.html('%s', html_time.moment::text)
            ELSE apikeys.html('<time datetime="%s">%s</time>',
                to_char(html_time.moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                to_char(html_time.moment AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')) END
$$;
COMMENT ON FUNCTION apikeys.html_time(timestamptz, text) IS
'A moment in UTC, as HTML.
What is shown for NULL is given as well.';
REVOKE EXECUTE ON FUNCTION apikeys.html_time(timestamptz, text) FROM PUBLIC;

CREATE FUNCTION apikeys.digits(number numeric) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT to_char(digits.number, 'FM999,999,999,999,999,999,990')
$$;
COMMENT ON FUNCTION apikeys.digits(numeric) IS
'A whole number for people, with commas.
In any locale.';
REVOKE EXECUTE ON FUNCTION apikeys.digits(numeric) FROM PUBLIC;

-- A name can hold characters that turn the direction of what follows: bdi ends
-- that with the name.
CREATE FUNCTION apikeys.html_key(id uuid, name text, start text) RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE WHEN html_key.name IS NULL
    THEN apikeys.html('<span class="quiet">purged</span> <code>%s</code>', html_key.id::text)
    ELSE apikeys.html('<a href="?id=%s"><bdi>%s</bdi></a> <code>%s&hellip;</code>',
                      html_key.id::text, html_key.name, html_key.start) END
$$;
COMMENT ON FUNCTION apikeys.html_key(uuid, text, text) IS
'A key by its name and start, with a link to its page.
Without a name it is one that was purged.';
REVOKE EXECUTE ON FUNCTION apikeys.html_key(uuid, text, text) FROM PUBLIC;

CREATE FUNCTION apikeys.html_code(code text) RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT apikeys.html('<span class="code%s">%s</span>',
    CASE WHEN html_code.code IN ('VALID', 'SETTLED', 'RELEASED') THEN ' good' ELSE ' bad' END, html_code.code)
$$;
COMMENT ON FUNCTION apikeys.html_code(text) IS
'An outcome, as HTML.
Refusals have another colour than the others.';
REVOKE EXECUTE ON FUNCTION apikeys.html_code(text) FROM PUBLIC;

-- ----- The frame of a page -----

CREATE FUNCTION apikeys.dashboard_style() RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '
:root { color-scheme: light dark; --ink: #1a1d21; --quiet: #565d66; --page: #f4f5f7;
  --card: #fff; --line: #d9dde2; --link: #0b57b0; --good: #176b3a; --bad: #a61b1b;
  --o0: #2f6fb5; --o1: #e69f00; --o2: #b3261e; --o3: #7b3fa0; --o4: #00856a; --o5: #4a4f57;
  --o6: #a9764a; --o7: #d05c9b }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #a2a9b2;
  --page: #121417; --card: #1c1f24; --line: #353a42; --link: #84b6f4; --good: #6fd39b;
  --bad: #ff9a90; --o0: #5b9be0; --o1: #f2b632; --o2: #f0685c; --o3: #bb8ae0; --o4: #37c2a1;
  --o5: #c3c8cf; --o6: #8f6037; --o7: #f19ac6 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif }
header, main, footer { max-width: 1160px; margin: 0 auto; padding: 0 16px }
header { display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: baseline; padding-top: 16px }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 17px; margin: 0 0 10px }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 16px; margin: 16px 0; min-width: 0 }
footer { color: var(--quiet); font-size: 13px; padding-bottom: 24px }
a { color: var(--link) }
a[aria-current] { color: inherit; font-weight: 600; text-decoration: none }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere }
p { margin: 0 0 10px } p:last-child { margin-bottom: 0 } table + p { margin-top: 8px }
.quiet, td code, th code { color: var(--quiet) }
.heads { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 24px; margin-bottom: 10px }
.heads h2 { margin: 0 }
dl { margin: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(190px, 45%), 1fr)); gap: 12px 20px }
dt { color: var(--quiet); font-size: 13px }
dd { margin: 0; overflow-wrap: anywhere }
.tiles dd { font-size: 22px; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; font-size: 13px; white-space: nowrap }
tbody th { font-weight: 400 }
td:last-child, th:last-child { padding-right: 0 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
time { font-variant-numeric: tabular-nums }
td.when, .address { white-space: nowrap }
.status { display: inline-block; border: 1px solid currentColor; border-radius: 9px;
  padding: 0 8px; font-size: 13px; white-space: nowrap; color: var(--quiet) }
.active, .good { color: var(--good) } .expired, .deleted, .bad { color: var(--bad) }
.code { font-size: 13px; white-space: nowrap }
.request { width: 34% } .share { width: 40% } td.share { vertical-align: middle }
.limit { display: block; font-size: 13px; margin-bottom: 6px } .limit:last-child { margin-bottom: 0 }
.whole { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: 10px 24px }
.limits { min-width: 220px; max-width: 360px; width: 34% }
.limit span { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px }
.bar, .swatch { display: block } .track { fill: var(--line) }
.swatch { display: inline-block; vertical-align: -1px; margin-right: 5px }
.used { fill: var(--o0) } .near { fill: var(--o1) } .over { fill: var(--o2) }
.chart { display: block; overflow: hidden } .chart text { fill: var(--ink); font-size: 12px;
  paint-order: stroke; stroke: var(--card); stroke-width: 4px }
.chart line { stroke: var(--line) }
.o0 { fill: var(--o0) } .o1 { fill: var(--o1) } .o2 { fill: var(--o2) } .o3 { fill: var(--o3) }
.o4 { fill: var(--o4) } .o5 { fill: var(--o5) } .o6 { fill: var(--o6) } .o7 { fill: var(--o7) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 10px 0 0; padding: 0; font-size: 13px }
figure { margin: 0 } summary { cursor: pointer; margin-top: 10px; color: var(--quiet); font-size: 13px }
@media (max-width: 720px) {
  header, main, footer { padding-left: 10px; padding-right: 10px } section { padding: 12px }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block }
  .cards tr { border-top: 1px solid var(--line); padding: 8px 0 }
  .cards tbody th { font-weight: 600 }
  .cards th, .cards td { border: 0; padding: 1px 0; width: auto; max-width: none; min-width: 0;
    text-align: left; white-space: normal }
  .cards td.short { display: inline-block; margin-right: 14px }
  .cards td[data-label]::before { content: attr(data-label) ": "; color: var(--quiet); font-size: 13px }
  .cards td.limits[data-label]::before, .cards td:empty { display: none } .limits { padding: 4px 0 }
}
'::text
$$;
COMMENT ON FUNCTION apikeys.dashboard_style() IS
'The style sheet of the dashboard.
The Content-Security-Policy allows this text by its hash, and no other style.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_style() FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_layout(title text, navigation apikeys.markup, content apikeys.markup)
RETURNS apikeys.markup
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
' || apikeys.html('<title>%s</title>', dashboard_layout.title) || '
<style>' || apikeys.dashboard_style() || '</style>
</head>
<body>
<header>' || apikeys.html('<h1>%s</h1>', dashboard_layout.title) || dashboard_layout.navigation || '</header>
<main>
' || dashboard_layout.content || '</main>
<footer>' || apikeys.html('<p>All times in UTC. Made at %s.</p>',
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')) || '</footer>
</body>
</html>
'
$$;
COMMENT ON FUNCTION apikeys.dashboard_layout(text, apikeys.markup, apikeys.markup) IS
'A whole page of the dashboard.
Of its title, its navigation and its content.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_layout(text, apikeys.markup, apikeys.markup) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_headers() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Not Content-Type: who asks for JSON gets a JSON string, which is no HTML.
    PERFORM apikeys.http_header('Content-Security-Policy', format(
        'default-src ''none''; style-src ''sha256-%s''; base-uri ''none''; form-action ''none''; frame-ancestors ''none''',
        encode(sha256(convert_to(apikeys.dashboard_style(), 'UTF8')), 'base64')));
    PERFORM apikeys.http_header('X-Content-Type-Options', 'nosniff');
    PERFORM apikeys.http_header('Referrer-Policy', 'no-referrer');
    PERFORM apikeys.http_header('Cache-Control', 'no-store');
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_headers() IS
'Set the headers of a page of the dashboard.
A browser runs no script in it, loads nothing, shows it in no frame and keeps no copy.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_headers() FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_refusal(status int, title text, explanation text) RETURNS apikeys.markup
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('response.status', dashboard_refusal.status::text, true);
    RETURN apikeys.dashboard_layout(dashboard_refusal.title,
        apikeys.html('<nav aria-label="Pages"><a href="?">All keys</a></nav>'),
        apikeys.html('<section><p>%s</p></section>', dashboard_refusal.explanation));
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_refusal(int, text, text) IS
'A page that says why there is none, with the status.
A person reads it: an error would be answered as JSON.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_refusal(int, text, text) FROM PUBLIC;

-- ----- Usage against limits -----

CREATE FUNCTION apikeys.dashboard_bar(share numeric, label text, color text) RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT apikeys.html('<svg class="bar" width="100%%" height="8" role="img" aria-label="%s">'
    '<rect class="track" width="100%%" height="8" rx="4"/>'
    '<rect class="%s" width="%s%%" height="8" rx="4"/></svg>',
    dashboard_bar.label, dashboard_bar.color,
    round(100 * greatest(least(dashboard_bar.share, 1), 0), 1)::text)
$$;
COMMENT ON FUNCTION apikeys.dashboard_bar(numeric, text, text) IS
'A bar of a share from 0 to 1.
color is used, near or over.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_bar(numeric, text, text) FROM PUBLIC;

-- One limit as apikey_usage shows it. Credits have no limit: a refill is the
-- whole of them, else what was granted.
CREATE FUNCTION apikeys.dashboard_limit("limit" jsonb, usage apikeys.usage_report, granted bigint)
RETURNS apikeys.markup
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kind CONSTANT text := "limit" ->> 'kind';
    remaining CONSTANT numeric := "limit" ->> 'remaining';
    reset CONSTANT timestamptz := "limit" ->> 'reset_time';
    most CONSTANT numeric := CASE kind WHEN 'credits' THEN greatest(granted, remaining)
                                       ELSE ("limit" ->> 'limit')::numeric END;
    used CONSTANT numeric := CASE kind WHEN 'quota' THEN usage.current_usage ELSE most - remaining END;
    share CONSTANT numeric := CASE WHEN most > 0 THEN used / most ELSE 1 END;
    label CONSTANT text := CASE kind
        WHEN 'quota' THEN CASE usage.period WHEN 'day' THEN 'Requests today'
                                            ELSE format('Requests this %s', usage.period) END
        WHEN 'credits' THEN 'Credits'
        ELSE format('Rate "%s"', "limit" ->> 'name') END;
    figures CONSTANT text := CASE
        WHEN kind = 'quota' AND most IS NULL THEN format('%s, unlimited', apikeys.digits(used))
        WHEN kind = 'quota' THEN format('%s of %s', apikeys.digits(used), apikeys.digits(most))
        ELSE format('%s of %s left', apikeys.digits(remaining), apikeys.digits(most)) END;
BEGIN
    IF kind = 'credits' AND remaining IS NULL THEN
        RETURN '';
    END IF;
    RETURN apikeys.html('<span class="limit"><span><b><bdi>%s</bdi></b> %s</span>', label, figures)
        || CASE WHEN most IS NULL THEN ''::apikeys.markup
                ELSE apikeys.dashboard_bar(share, format('%s: %s%% used', label, floor(100 * share)),
                    CASE WHEN share >= 1 THEN 'over' WHEN share >= 0.8 THEN 'near' ELSE 'used' END) END
        || CASE WHEN reset > now() AND used > 0 AND most IS NOT NULL
                THEN apikeys.html('<span class="quiet">%s ',
                        CASE kind WHEN 'rate' THEN 'whole again at' ELSE 'new period at' END)
                     || apikeys.html_time(reset) || '</span>'::apikeys.markup
                ELSE ''::apikeys.markup END
        || '</span>'::apikeys.markup;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_limit(jsonb, apikeys.usage_report, bigint) IS
'One limit of a key with a bar of what is used of it.
granted is the whole of the credits.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_limit(jsonb, apikeys.usage_report, bigint) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_limits(key_id uuid) RETURNS apikeys.markup
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    report CONSTANT apikeys.usage_report := @extschema@.apikey_usage(dashboard_limits.key_id);
    granted CONSTANT bigint := (
        SELECT CASE WHEN k.credits IS NOT NULL OR k.refill_amount IS NOT NULL
                    THEN coalesce(k.refill_amount, k.credits)
                    ELSE coalesce(u.refill_amount, u.credits) END
          FROM apikeys.keys k
          LEFT JOIN apikeys.users u ON u.id = k.user_id
         WHERE k.id = dashboard_limits.key_id);
BEGIN
    RETURN coalesce((SELECT string_agg(apikeys.dashboard_limit(l.object, report, granted), '' ORDER BY l.place)
                       FROM jsonb_array_elements(report.limits) WITH ORDINALITY AS l(object, place)), '')
        || CASE report.subject WHEN 'user'
                THEN apikeys.html('<span class="quiet">shared by all keys of <bdi>%s</bdi></span>', report.user_id)
                ELSE ''::apikeys.markup END;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_limits(uuid) IS
'Usage of a key against each of its limits, as bars.
Live, by apikey_usage. Raises P0002 for an unknown key.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_limits(uuid) FROM PUBLIC;

-- ----- Requests over time -----

CREATE FUNCTION apikeys.usage_totals(step text, "from" timestamptz) RETURNS SETOF apikeys.usage_bucket
LANGUAGE sql STABLE ROWS 30
SET search_path = pg_catalog, pg_temp
AS $$
SELECT b.start, apikeys.period_end(usage_totals.step, '-infinity', b.start),
       coalesce((sum(o.requests) FILTER (WHERE o.code = 'VALID'))::bigint, 0),
       coalesce((sum(o.requests) FILTER (WHERE o.code <> 'VALID'))::bigint, 0),
       coalesce(sum(o.cost)::bigint, 0),
       coalesce(jsonb_object_agg(o.code, o.requests) FILTER (WHERE o.requests > 0), '{}')
  FROM (SELECT s.start AT TIME ZONE 'UTC'
          FROM generate_series(
                   apikeys.period_start(usage_totals.step, '-infinity', usage_totals."from") AT TIME ZONE 'UTC',
                   now() AT TIME ZONE 'UTC', format('1 %s', usage_totals.step)::interval) s (start)) b (start)
  LEFT JOIN LATERAL
       (SELECT t.code, sum(t.requests) AS requests, sum(t.cost) AS cost
          FROM apikeys.rollup_totals t
         WHERE t.step = CASE usage_totals.step WHEN 'hour' THEN 'hour' ELSE 'day' END
           AND t.start >= b.start
           AND t.start < apikeys.period_end(usage_totals.step, '-infinity', b.start)
         GROUP BY t.code) o ON true
 GROUP BY b.start
 ORDER BY b.start
$$;
COMMENT ON FUNCTION apikeys.usage_totals(text, timestamptz) IS
'Time series of the requests of all keys together.
One row a step (hour, day, week, month or year, in UTC) from the one that holds "from" until now, as apikey_usage_series gives them.';
REVOKE EXECUTE ON FUNCTION apikeys.usage_totals(text, timestamptz) FROM PUBLIC;

CREATE FUNCTION apikeys.outcome_class(code text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format('o%s', coalesce(array_position('{VALID, RATE_LIMITED, USAGE_EXCEEDED, FORBIDDEN,
    INSUFFICIENT_PERMISSIONS, DISABLED, EXPIRED}', outcome_class.code) - 1, 7))
$$;
COMMENT ON FUNCTION apikeys.outcome_class(text) IS
'The class that colours an outcome in a chart.
In the order of the classes outcomes are stacked: o0 is VALID.';
REVOKE EXECUTE ON FUNCTION apikeys.outcome_class(text) FROM PUBLIC;

CREATE FUNCTION apikeys.chart_top(most numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT trim_scale(min(s.top))
  FROM (SELECT d.digit * 10::numeric ^ greatest(floor(log(greatest(chart_top.most, 1))), 0) AS top
          FROM unnest('{1, 1.2, 1.6, 2, 3, 4, 6, 8, 10}'::numeric[]) d (digit)) s
 WHERE s.top >= chart_top.most AND s.top % 2 = 0
$$;
COMMENT ON FUNCTION apikeys.chart_top(numeric) IS
'Where the axis of a chart ends: a round number that can be halved.
At least 2, at least the number given.';
REVOKE EXECUTE ON FUNCTION apikeys.chart_top(numeric) FROM PUBLIC;

-- Bars lie at shares of the width and at pixels of the height: so text keeps
-- its size however narrow the chart is.
CREATE FUNCTION apikeys.dashboard_bars(series apikeys.usage_bucket[], span text) RETURNS apikeys.markup
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    height CONSTANT int := 160;
    bottom CONSTANT int := 180;
    buckets CONSTANT int := cardinality(series);
    width CONSTANT numeric := 100.0 / buckets;
    every CONSTANT int := CASE span WHEN 'day' THEN 6 WHEN 'month' THEN 7 ELSE 3 END;
    top CONSTANT numeric := apikeys.chart_top((SELECT max(b.allowed + b.denied) FROM unnest(series) b));
    answer apikeys.markup := '';
    at numeric;
    y numeric;
    bucket apikeys.usage_bucket;
    segment record;
BEGIN
    FOR tick IN 0..2 LOOP
        y := bottom - height * tick / 2;
        answer := answer || apikeys.html('<line x1="0" x2="100%%" y1="%1$s" y2="%1$s"/>', (y + 0.5)::text);
    END LOOP;
    FOR i IN 1..buckets LOOP
        bucket := series[i];
        at := (i - 1) * width;
        y := bottom;
        answer := answer || apikeys.html('<g><title>%s: %s allowed, %s refused</title>'
            '<rect x="%s%%" y="%s" width="%s%%" height="%s" fill-opacity="0"/>',
            apikeys.bucket_name(bucket.bucket_start, span), apikeys.digits(bucket.allowed),
            apikeys.digits(bucket.denied), round(at, 3)::text, (bottom - height)::text,
            round(width, 3)::text, height::text);
        FOR segment IN
            SELECT apikeys.outcome_class(o.code) AS class, sum(o.requests::numeric) AS requests
              FROM jsonb_each_text(bucket.outcomes) o (code, requests)
             GROUP BY 1
             ORDER BY 1
        LOOP
            -- What there is shall be seen, and a hair of the page parts it.
            at := greatest(height * segment.requests / top, 1);
            y := y - at;
            answer := answer || apikeys.html('<rect class="%s" x="%s%%" y="%s" width="%s%%" height="%s"/>',
                segment.class, round((i - 1) * width + width * 0.1, 3)::text, round(y, 2)::text,
                round(width * 0.8, 3)::text, round(greatest(at - 0.5, 0.75), 2)::text);
        END LOOP;
        answer := answer || '</g>'::apikeys.markup;
        IF i % every = (every + 1) / 2 THEN
            answer := answer || apikeys.html('<text x="%s%%" y="%s" text-anchor="middle">%s</text>',
                round((i - 0.5) * width, 3)::text, (bottom + 16)::text,
                apikeys.bucket_name(bucket.bucket_start, span));
        END IF;
    END LOOP;
    FOR tick IN 1..2 LOOP
        y := bottom - height * tick / 2;
        answer := answer || apikeys.html('<text x="2" y="%s">%s</text>', (y - 4)::text, apikeys.digits(top * tick / 2));
    END LOOP;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_bars(apikeys.usage_bucket[], text) IS
'The bars of a chart, stacked by outcome, with its axes.
Inside of an SVG 204 pixels high, of any width.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_bars(apikeys.usage_bucket[], text) FROM PUBLIC;

CREATE FUNCTION apikeys.bucket_name(start timestamptz, span text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT to_char(bucket_name.start AT TIME ZONE 'UTC',
    CASE bucket_name.span WHEN 'day' THEN 'HH24:00' WHEN 'month' THEN 'DD Mon' ELSE 'Mon YYYY' END)
$$;
COMMENT ON FUNCTION apikeys.bucket_name(timestamptz, text) IS
'An hour, day or month as a chart over so much time shows it.
In English, in any locale.';
REVOKE EXECUTE ON FUNCTION apikeys.bucket_name(timestamptz, text) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_chart(series apikeys.usage_bucket[], span text) RETURNS apikeys.markup
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total CONSTANT numeric := (SELECT sum(b.allowed + b.denied) FROM unnest(series) b);
    codes text[];
    sums numeric[];
    legend apikeys.markup;
    heads apikeys.markup;
    rows apikeys.markup;
BEGIN
    SELECT array_agg(s.code ORDER BY s.class, s.code), array_agg(s.requests ORDER BY s.class, s.code)
      INTO codes, sums
      FROM (SELECT o.code, apikeys.outcome_class(o.code) AS class, sum(o.requests::numeric) AS requests
              FROM unnest(series) b, jsonb_each_text(b.outcomes) o (code, requests)
             GROUP BY o.code) s;
    IF codes IS NULL THEN
        RETURN apikeys.html('<p class="quiet">No requests in this time.</p>');
    END IF;
    SELECT string_agg(apikeys.html('<li><svg class="swatch" width="11" height="11" aria-hidden="true">'
                          '<rect class="%s" width="11" height="11" rx="2"/></svg>%s %s</li>',
                          apikeys.outcome_class(c.code), c.code, apikeys.digits(c.requests)), '' ORDER BY c.place),
           string_agg(apikeys.html('<th scope="col" class="number">%s</th>', c.code), '' ORDER BY c.place)
      INTO legend, heads
      FROM unnest(codes, sums) WITH ORDINALITY AS c(code, requests, place);
    SELECT string_agg(apikeys.html('<tr><th scope="row">%s</th>', apikeys.bucket_name(b.bucket_start, span))
               || (SELECT string_agg(apikeys.html('<td class="number short" data-label="%s">%s</td>', c.code,
                              apikeys.digits(coalesce((b.outcomes ->> c.code)::numeric, 0))), '' ORDER BY c.place)
                     FROM unnest(codes) WITH ORDINALITY AS c(code, place))
               || '</tr>'::apikeys.markup, '' ORDER BY b.bucket_start DESC)
      INTO rows
      FROM unnest(series) b;
    RETURN '<figure><svg class="chart" width="100%" height="204" role="img" aria-labelledby="chart-title chart-desc">'::apikeys.markup
        || apikeys.html('<title id="chart-title">Requests by outcome</title><desc id="chart-desc">%s requests: %s.</desc>',
               apikeys.digits(total),
               (SELECT string_agg(format('%s %s', apikeys.digits(c.requests), c.code), ', ' ORDER BY c.place)
                  FROM unnest(codes, sums) WITH ORDINALITY AS c(code, requests, place)))
        || apikeys.dashboard_bars(series, span)
        || '</svg><ul class="legend">'::apikeys.markup || legend
        || '</ul></figure><details><summary>The same as a table</summary><table class="cards"><thead><tr><th scope="col">Time</th>'::apikeys.markup
        || heads || '</tr></thead><tbody>'::apikeys.markup || rows || '</tbody></table></details>'::apikeys.markup;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_chart(apikeys.usage_bucket[], text) IS
'A chart of requests over time by outcome.
An SVG with title and description, a legend, and the figures as a table.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_chart(apikeys.usage_bucket[], text) FROM PUBLIC;

-- The times that can be chosen; each keeps the key, if there is one.
CREATE FUNCTION apikeys.dashboard_spans(key_id uuid, span text) RETURNS apikeys.markup
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '<nav aria-label="Time">' || string_agg(
           apikeys.html('<a href="?%sspan=%s"',
               CASE WHEN dashboard_spans.key_id IS NOT NULL THEN format('id=%s&', dashboard_spans.key_id) END, s.span)
           || CASE s.span WHEN dashboard_spans.span THEN ' aria-current="page">' ELSE '>' END::apikeys.markup
           || apikeys.html('%s</a>', s.label), ' ' ORDER BY s.place) || '</nav>'
  FROM unnest('{day, month, year}'::text[], '{24 hours, 30 days, 12 months}'::text[])
       WITH ORDINALITY AS s(span, label, place)
$$;
COMMENT ON FUNCTION apikeys.dashboard_spans(uuid, text) IS
'Links to the same page over another time.
The present one is marked.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_spans(uuid, text) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_series(key_id uuid, span text, OUT series apikeys.usage_bucket[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    step CONSTANT text := CASE span WHEN 'day' THEN 'hour' WHEN 'month' THEN 'day' ELSE 'month' END;
    since CONSTANT timestamptz := CASE span
        WHEN 'day' THEN now() - interval '23 hours'
        WHEN 'month' THEN now() - interval '696 hours'
        ELSE (date_trunc('month', now() AT TIME ZONE 'UTC') - interval '11 months') AT TIME ZONE 'UTC' END;
BEGIN
    IF dashboard_series.key_id IS NULL THEN
        series := ARRAY(SELECT s FROM apikeys.usage_totals(step, since) s);
    ELSE
        series := ARRAY(SELECT s FROM @extschema@.apikey_usage_series(
            dashboard_series.key_id, step, since, now()) s);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_series(uuid, text) IS
'Requests of a key, or of all (NULL), over a time that can be chosen.
day: 24 hours; month: 30 days; year: 12 months.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_series(uuid, text) FROM PUBLIC;

-- ----- Which keys are shown -----

-- By the index of hours, from its end, at most 50,000 rows of it: all of the last
-- 24 hours where not more keys are in use. Else "since" tells how far it got: to
-- the first hour that was read whole. If not even the present one was, what is
-- found is of a sample.
CREATE FUNCTION apikeys.top_keys("limit" int, OUT since timestamptz, OUT is_sample boolean,
    OUT key_ids uuid[], OUT allowed bigint[], OUT denied bigint[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
WITH hours AS MATERIALIZED (
    SELECT r.key_id, r.start, r.code, r.requests
      FROM apikeys.rollups r
     WHERE r.step = 'hour' AND r.start > now() - interval '24 hours'
     ORDER BY r.start DESC
     LIMIT 50000
), known AS (
    SELECT CASE WHEN count(*) < 50000 THEN date_trunc('hour', now(), 'UTC') - interval '23 hours'
                ELSE least(min(h.start) + interval '1 hour', max(h.start)) END AS since,
           count(*) = 50000 AND min(h.start) = max(h.start) AS is_sample
      FROM hours h
), top AS (
    SELECT h.key_id, sum(h.requests)::bigint AS requests,
           coalesce(sum(h.requests) FILTER (WHERE h.code = 'VALID'), 0)::bigint AS allowed
      FROM hours h, known n
     WHERE h.start >= n.since
     GROUP BY h.key_id
    HAVING sum(h.requests) > 0
     ORDER BY 2 DESC, 1
     LIMIT top_keys."limit"
)
SELECT n.since, n.is_sample,
       ARRAY(SELECT t.key_id FROM top t ORDER BY t.requests DESC, t.key_id),
       ARRAY(SELECT t.allowed FROM top t ORDER BY t.requests DESC, t.key_id),
       ARRAY(SELECT t.requests - t.allowed FROM top t ORDER BY t.requests DESC, t.key_id)
  FROM known n
$$;
COMMENT ON FUNCTION apikeys.top_keys(int) IS
'The keys with the most requests in the last 24 hours.
Looks at 50,000 hours of keys at most; since tells how far back that was, is_sample that it was less than the present hour.';
REVOKE EXECUTE ON FUNCTION apikeys.top_keys(int) FROM PUBLIC;

-- last_used_at has no index, so that setting it stays cheap. Candidates are the
-- keys of the last 10,000 rows of the index of hours, and the 1,000 made last:
-- all keys where there are no more, and whoever was in use lately.
CREATE FUNCTION apikeys.recent_keys("limit" int, "offset" int) RETURNS SETOF uuid
LANGUAGE sql STABLE ROWS 50
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
WITH candidates AS MATERIALIZED (
    SELECT h.key_id
      FROM (SELECT r.key_id FROM apikeys.rollups r
             WHERE r.step = 'hour'
             ORDER BY r.start DESC LIMIT 10000) h
    UNION
    SELECT n.id
      FROM (SELECT k.id FROM apikeys.keys k
             ORDER BY k.id DESC LIMIT 1000) n
)
SELECT k.id
  FROM candidates c,
       LATERAL (SELECT k.id, k.last_used_at FROM apikeys.keys k
                 WHERE k.id = c.key_id AND k.deleted_at IS NULL
                OFFSET 0) k
 ORDER BY k.last_used_at DESC NULLS LAST, k.id DESC
 LIMIT recent_keys."limit" OFFSET recent_keys."offset"
$$;
COMMENT ON FUNCTION apikeys.recent_keys(int, int) IS
'Keys not deleted, the one that was used last first.
Of the 1,000 made last, and of those in use lately.';
REVOKE EXECUTE ON FUNCTION apikeys.recent_keys(int, int) FROM PUBLIC;

-- ----- The parts of the page of all keys -----

CREATE FUNCTION apikeys.dashboard_tiles(series apikeys.usage_bucket[]) RETURNS apikeys.markup
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT apikeys.html('<dl class="tiles"><div><dt>Requests</dt><dd>%s</dd></div>'
           '<div><dt>Allowed</dt><dd>%s</dd></div><div><dt>Refused</dt><dd>%s</dd></div>'
           '<div><dt>Unknown secrets, since the start</dt><dd>%s</dd></div></dl>',
           apikeys.digits(sum(b.allowed + b.denied)), apikeys.digits(sum(b.allowed)),
           apikeys.digits(sum(b.denied)),
           (SELECT apikeys.digits(sum(s.value)) FROM apikeys.statistics() s
             WHERE s.name IN ('NOT_FOUND', 'MALFORMED')))
  FROM unnest(dashboard_tiles.series) b
$$;
COMMENT ON FUNCTION apikeys.dashboard_tiles(apikeys.usage_bucket[]) IS
'The sums of a chart in large figures.
And how many secrets were presented that are no key''s: those are in no chart.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_tiles(apikeys.usage_bucket[]) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_top() RETURNS apikeys.markup
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found record;
    rows apikeys.markup;
BEGIN
    SELECT t.* INTO found FROM apikeys.top_keys(10) t;
    SELECT string_agg('<tr><th scope="row">' || apikeys.html_key(t.key_id, k.name, k.start)
               || '</th><td class="share">'
               || apikeys.dashboard_bar((t.allowed + t.denied)::numeric / (found.allowed[1] + found.denied[1]), 'Compared with the busiest', 'used')
               || apikeys.html('</td><td class="number short" data-label="Requests">%s</td><td class="number short" data-label="Refused">%s</td></tr>',
                      apikeys.digits(t.allowed + t.denied), apikeys.digits(t.denied)),
               '' ORDER BY t.place)
      INTO rows
      FROM unnest(found.key_ids, found.allowed, found.denied)
           WITH ORDINALITY AS t(key_id, allowed, denied, place)
      LEFT JOIN LATERAL (SELECT k.name, k.start FROM apikeys.keys k WHERE k.id = t.key_id OFFSET 0) k ON true;
    RETURN '<section aria-labelledby="top"><h2 id="top">Busiest keys</h2>'::apikeys.markup
        || CASE WHEN rows IS NULL THEN apikeys.html('<p class="quiet">No requests in the last 24 hours.</p>')
           ELSE '<table class="cards"><thead><tr><th scope="col">Key</th><th scope="col" class="share">Compared</th><th scope="col" class="number">Requests</th>'
                '<th scope="col" class="number">Refused</th></tr></thead><tbody>'::apikeys.markup || rows
                || '</tbody></table><p class="quiet">Since '::apikeys.markup || apikeys.html_time(found.since)
                || apikeys.html('%s</p>', CASE WHEN found.is_sample THEN ', of a sample of the keys in use' END) END
        || '</section>'::apikeys.markup;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_top() IS
'The ten busiest keys, as a table.
Of the last 24 hours, or less where very many keys are in use; it says since when.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_top() FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_refusals() RETURNS apikeys.markup
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '<section aria-labelledby="refusals"><h2 id="refusals">Recent refusals</h2>'
       || coalesce('<table class="cards"><thead><tr><th scope="col">Time</th><th scope="col">Outcome</th>'
           '<th scope="col">Key</th><th scope="col">Request</th><th scope="col">Address</th></tr></thead><tbody>'
           || string_agg('<tr><td class="when short">' || apikeys.html_time(r."timestamp") || '</td><td class="short">'
                  || apikeys.html_code(r.code) || '</td><th scope="row">' || apikeys.html_key(r.key_id, k.name, k.start)
                  || apikeys.html('</th><td class="request" data-label="Request"><bdi>%s</bdi></td><td class="address" data-label="Address">%s</td></tr>',
                         concat_ws(' ', r.method, r.endpoint), host(r.ip_address)),
                  '' ORDER BY r."timestamp" DESC)
           || '</tbody></table>', '<p class="quiet">None in the history.</p>')
       || '</section>'
  FROM (SELECT q."timestamp", q.key_id, q.code, q.method, q.endpoint, q.ip_address
          FROM apikeys.requests q
         WHERE q.status = 'denied'
         ORDER BY q."timestamp" DESC
         LIMIT 15) r
  LEFT JOIN LATERAL (SELECT k.name, k.start FROM apikeys.keys k WHERE k.id = r.key_id OFFSET 0) k ON true
$$;
COMMENT ON FUNCTION apikeys.dashboard_refusals() IS
'The last refusals in the history, as a table.
From the end of the index of what was denied, in each partition.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_refusals() FROM PUBLIC;

CREATE FUNCTION apikeys.html_status(status text) RETURNS apikeys.markup
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT apikeys.html('<span class="status %1$s">%1$s</span>', html_status.status)
$$;
COMMENT ON FUNCTION apikeys.html_status(text) IS
'The status of a key, as HTML.
It is told by its word; the colour only helps.';
REVOKE EXECUTE ON FUNCTION apikeys.html_status(text) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_keys(page int) RETURNS apikeys.markup
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    size CONSTANT int := 50;
    ids CONSTANT uuid[] := ARRAY(SELECT k FROM apikeys.recent_keys(size + 1, (page - 1) * size) k);
    rows apikeys.markup;
BEGIN
    SELECT string_agg('<tr><th scope="row">' || apikeys.html_key(k.id, k.name, k.start)
               || '</th><td>' || apikeys.html_status(k.status)
               || apikeys.html('</td><td data-label="User"><bdi>%s</bdi></td><td data-label="Plan"><bdi>%s</bdi></td><td class="limits" data-label="Usage">',
                      k.user_id, k.plan_id)
               || apikeys.dashboard_limits(k.id)
               || '</td><td class="when" data-label="Last used">' || apikeys.html_time(k.last_used_at, 'never')
               || '</td></tr>', '' ORDER BY i.place)
      INTO rows
      FROM unnest(ids[1:size]) WITH ORDINALITY AS i(id, place),
           LATERAL (SELECT o.id, o.name, o.start, o.status, o.user_id, o.plan_id, o.last_used_at
                      FROM apikeys.key_objects o WHERE o.id = i.id OFFSET 0) k;
    RETURN '<section aria-labelledby="keys"><h2 id="keys">Keys, by last use</h2>'::apikeys.markup
        || CASE WHEN rows IS NULL THEN apikeys.html('<p class="quiet">%s</p>',
                    CASE page WHEN 1 THEN 'There is no key yet.' ELSE 'No further keys are shown.' END)
           ELSE '<table class="cards"><thead><tr><th scope="col">Key</th><th scope="col">Status</th>'
                '<th scope="col">User</th><th scope="col">Plan</th><th scope="col">Usage</th>'
                '<th scope="col">Last used</th></tr></thead><tbody>'::apikeys.markup || rows
                || '</tbody></table>'::apikeys.markup END
        || '<nav aria-label="Pages of keys">'::apikeys.markup
        || CASE WHEN page > 1 THEN apikeys.html('<a href="?page=%s" rel="prev">Previous keys</a>', (page - 1)::text)
                ELSE ''::apikeys.markup END
        || CASE WHEN cardinality(ids) > size AND page < 1000
                THEN apikeys.html('<a href="?page=%s" rel="next">Next keys</a>', (page + 1)::text)
                ELSE ''::apikeys.markup END
        || '</nav></section>'::apikeys.markup;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_keys(int) IS
'A page of 50 keys with their usage, as a table.
Those of apikeys.recent_keys.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_keys(int) FROM PUBLIC;

-- ----- The parts of the page of one key -----

CREATE FUNCTION apikeys.dashboard_facts(key apikeys.key_objects) RETURNS apikeys.markup
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT '<dl><div><dt>Status</dt><dd>' || apikeys.html_status((dashboard_facts.key).status)
       || apikeys.html('</dd></div><div><dt>Start of the secret</dt><dd><code>%s&hellip;</code></dd></div>'
              '<div><dt>Id</dt><dd><code>%s</code></dd></div><div><dt>Api</dt><dd><bdi>%s</bdi></dd></div>'
              '<div><dt>User</dt><dd><bdi>%s</bdi></dd></div><div><dt>Plan of its own</dt><dd><bdi>%s</bdi></dd></div>',
              (dashboard_facts.key).start, (dashboard_facts.key).id::text, (dashboard_facts.key).api_id,
              coalesce((dashboard_facts.key).user_id, 'none'), coalesce((dashboard_facts.key).plan_id, 'none'))
       || '<div><dt>Created</dt><dd>' || apikeys.html_time((dashboard_facts.key).created_at)
       || '</dd></div><div><dt>Last used</dt><dd>' || apikeys.html_time((dashboard_facts.key).last_used_at, 'never')
       || '</dd></div><div><dt>Expires</dt><dd>' || apikeys.html_time((dashboard_facts.key).expires_at, 'never')
       || '</dd></div>'
       || CASE WHEN (dashboard_facts.key).regenerated_at IS NULL THEN ''
               ELSE '<div><dt>Regenerated</dt><dd>' || apikeys.html_time((dashboard_facts.key).regenerated_at)
                    || '</dd></div>' END
       || CASE WHEN (dashboard_facts.key).deleted_at IS NULL THEN ''
               ELSE '<div><dt>Deleted</dt><dd>' || apikeys.html_time((dashboard_facts.key).deleted_at)
                    || '</dd></div>' END
       || apikeys.html('<div><dt>Permissions</dt><dd><bdi>%s</bdi></dd></div><div><dt>Roles</dt><dd><bdi>%s</bdi></dd></div>'
              '<div><dt>Networks</dt><dd>%s</dd></div></dl>',
              coalesce(nullif(array_to_string((dashboard_facts.key).permissions, ', '), ''), 'none'),
              coalesce(nullif(array_to_string((dashboard_facts.key).roles, ', '), ''), 'none'),
              coalesce(array_to_string((dashboard_facts.key).allowed_ips, ', '), 'any'))
$$;
COMMENT ON FUNCTION apikeys.dashboard_facts(apikeys.key_objects) IS
'What a key is, as a list of terms.
What a key object holds, but for metadata, which are the application''s.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_facts(apikeys.key_objects) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_history(key_id uuid, before timestamptz) RETURNS apikeys.markup
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    size CONSTANT int := 50;
    requests CONSTANT apikeys.requests[] := ARRAY(
        SELECT r FROM @extschema@.apikey_requests(dashboard_history.key_id, size + 1, dashboard_history.before) r);
    rows apikeys.markup;
BEGIN
    SELECT string_agg('<tr><td class="when short">' || apikeys.html_time(r."timestamp")
               || '</td><td class="short">' || apikeys.html_code(r.code)
               || apikeys.html('</td><th scope="row"><bdi>%s</bdi></th><td class="address short" data-label="Address">%s</td>'
                      '<td class="number short" data-label="Cost">%s</td><td data-label="Tags"><bdi>%s</bdi></td></tr>',
                      concat_ws(' ', r.method, r.endpoint), host(r.ip_address),
                      apikeys.digits(r.cost), array_to_string(r.tags, ', ')),
               '' ORDER BY r."timestamp" DESC)
      INTO rows
      FROM unnest(requests[1:size]) r;
    RETURN '<section aria-labelledby="history"><h2 id="history">History</h2>'::apikeys.markup
        || CASE WHEN rows IS NULL THEN apikeys.html('<p class="quiet">No requests in the history.</p>')
           ELSE '<table class="cards"><thead><tr><th scope="col">Time</th><th scope="col">Outcome</th>'
                '<th scope="col">Request</th><th scope="col">Address</th><th scope="col" class="number">Cost</th>'
                '<th scope="col">Tags</th></tr></thead><tbody>'::apikeys.markup || rows
                || '</tbody></table>'::apikeys.markup END
        || CASE WHEN cardinality(requests) > size THEN apikeys.html(
                    '<nav aria-label="Pages of the history"><a href="?id=%s&amp;before=%s" rel="next">Older requests</a></nav>',
                    dashboard_history.key_id::text,
                    to_char(requests[size]."timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                ELSE ''::apikeys.markup END
        || '</section>'::apikeys.markup;
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_history(uuid, timestamptz) IS
'A page of 50 requests of a key, newest first, as a table.
Those before a moment, or the last ones (NULL).';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_history(uuid, timestamptz) FROM PUBLIC;

-- ----- The pages -----

CREATE FUNCTION apikeys.dashboard_of_all(span text, page int) RETURNS apikeys.markup
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    series CONSTANT apikeys.usage_bucket[] := apikeys.dashboard_series(NULL, span);
BEGIN
    RETURN apikeys.dashboard_layout('API keys', '',
        '<section aria-labelledby="requests"><div class="heads"><h2 id="requests">Requests</h2>'::apikeys.markup
        || apikeys.dashboard_spans(NULL, span) || '</div>'::apikeys.markup
        || apikeys.dashboard_tiles(series) || apikeys.dashboard_chart(series, span)
        || '</section>'::apikeys.markup
        || apikeys.dashboard_top() || apikeys.dashboard_refusals() || apikeys.dashboard_keys(page));
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_of_all(text, int) IS
'The page of all keys.
Over a time, with a page of keys.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_of_all(text, int) FROM PUBLIC;

CREATE FUNCTION apikeys.dashboard_of_key(key_id uuid, span text, before timestamptz) RETURNS apikeys.markup
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key apikeys.key_objects;
BEGIN
    SELECT k.* INTO key FROM apikeys.key_objects k WHERE k.id = dashboard_of_key.key_id;
    IF NOT FOUND THEN
        RETURN apikeys.dashboard_refusal(404, 'No such key', 'It has never been, or it was purged.');
    END IF;
    RETURN apikeys.dashboard_layout(key.name,
        apikeys.html('<nav aria-label="Pages"><a href="?">All keys</a></nav>'),
        '<section aria-label="The key">'::apikeys.markup || apikeys.dashboard_facts(key)
        || '</section><section aria-labelledby="usage"><h2 id="usage">Usage</h2><div class="whole">'::apikeys.markup
        || apikeys.dashboard_limits(key.id)
        || '</div></section><section aria-labelledby="requests"><div class="heads"><h2 id="requests">Requests</h2>'::apikeys.markup
        || apikeys.dashboard_spans(key.id, span) || '</div>'::apikeys.markup
        || apikeys.dashboard_chart(apikeys.dashboard_series(key.id, span), span)
        || '</section>'::apikeys.markup || apikeys.dashboard_history(key.id, dashboard_of_key.before));
END
$$;
COMMENT ON FUNCTION apikeys.dashboard_of_key(uuid, text, timestamptz) IS
'The page of one key.
Over a time, with a page of its history. Status 404 for an unknown key.';
REVOKE EXECUTE ON FUNCTION apikeys.dashboard_of_key(uuid, text, timestamptz) FROM PUBLIC;

CREATE FUNCTION apikeys_http.apikey_dashboard(id uuid = NULL, span text = 'day', page int = 1,
    before timestamptz = NULL)
RETURNS apikeys_http."text/html"
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD'
-- What is off makes plans look dear enough to compile, which takes longer than all else.
SET jit = off
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    wrong CONSTANT text := CASE
        WHEN (apikey_dashboard.span IN ('day', 'month', 'year')) IS NOT TRUE
            THEN 'span must be day, month or year.'
        WHEN (apikey_dashboard.page BETWEEN 1 AND 1000) IS NOT TRUE
            THEN 'page must be between 1 and 1000.'
        WHEN NOT isfinite(apikey_dashboard.before)
            THEN 'before must be finite.'
    END;
BEGIN
    PERFORM apikeys.dashboard_headers();
    IF wrong IS NOT NULL THEN
        RETURN apikeys.dashboard_refusal(400, 'Not a page', wrong);
    END IF;
    IF apikey_dashboard.id IS NULL THEN
        RETURN apikeys.dashboard_of_all(apikey_dashboard.span, apikey_dashboard.page);
    END IF;
    RETURN apikeys.dashboard_of_key(apikey_dashboard.id, apikey_dashboard.span, apikey_dashboard.before);
END
$$;
COMMENT ON FUNCTION apikeys_http.apikey_dashboard(uuid, text, int, timestamptz) IS
'The dashboard: a page of all keys, or of one.
HTML without scripts. Without id: requests over time (span: day, month or year), the busiest keys, recent refusals, and keys by last use with their usage, 50 a page. With id: that key, its usage, its requests over time, and its history, older than before.
A page with the status 400 for arguments that cannot be, 404 for an unknown key.';
REVOKE EXECUTE ON FUNCTION apikeys_http.apikey_dashboard(uuid, text, int, timestamptz) FROM PUBLIC;

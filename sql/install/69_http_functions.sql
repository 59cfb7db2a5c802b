-- The functions as PostgREST shows them, in the schema apikeys_http.
--
-- Each is wrapped by one of the same name and arguments, so that errors have
-- the right status, what does not exist is a 404, and a list is one JSON array
-- with a Content-Range: rows would be cut silently by db-max-rows. They run as
-- their owner: EXECUTE on them is the gate, as it is for what they wrap.

CREATE FUNCTION apikeys.http_header(name text, value text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT set_config('response.headers',
    (coalesce(nullif(current_setting('response.headers', true), ''), '[]')::jsonb
     || jsonb_build_array(jsonb_build_object(http_header.name, http_header.value)))::text,
    true)
$$;
COMMENT ON FUNCTION apikeys.http_header(text, text) IS
'Add a header to the answer of PostgREST.
What other headers the transaction has set stays.';
REVOKE EXECUTE ON FUNCTION apikeys.http_header(text, text) FROM PUBLIC;

CREATE FUNCTION apikeys.http_range(first bigint, items bigint, total bigint) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT apikeys.http_header('Content-Range', format('%s/%s',
    CASE WHEN items > 0 AND first IS NOT NULL THEN format('%s-%s', first, first + items - 1) ELSE '*' END,
    coalesce(total::text, '*')))
$$;
COMMENT ON FUNCTION apikeys.http_range(bigint, bigint, bigint) IS
'Tell which items of how many the answer of PostgREST holds.
An unknown first item or total is NULL.';
REVOKE EXECUTE ON FUNCTION apikeys.http_range(bigint, bigint, bigint) FROM PUBLIC;

-- PostgREST would make 500 of P0002 and 55000, and 400 or 413 of conflicts.
CREATE FUNCTION apikeys.http_refuse(state text, message text, detail text,
    hint text, field text, "constraint" text, arguments text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    status int := CASE
        WHEN state = 'P0002' THEN 404
        WHEN state IN ('23503', '23505', '54000', '55000') THEN 409
        WHEN state = '23514' AND coalesce("constraint", '') = '' THEN 409
        WHEN state = '42704' OR left(state, 2) IN ('22', '23') THEN 400
    END;
    named text := coalesce(substring(message FROM 'field "([^"]*)"'), nullif(field, ''),
        substring("constraint" FROM E'^[a-z]+_(\\w+)_check$'),
        (SELECT a.name
           FROM unnest(arguments) WITH ORDINALITY AS a(name, place)
          WHERE message ~ (E'\\m' || a.name || E'\\M')
             OR message ~ ('^id of an? ' || substring(a.name FROM '^(.*)_id$') || E'\\M')
          ORDER BY strpos(message, a.name), a.place
          LIMIT 1));
BEGIN
    IF status IS NULL THEN
        RETURN;
    END IF;
    RAISE SQLSTATE 'PGRST' USING
        MESSAGE = json_build_object('code', state, 'message', message,
            'details', CASE WHEN status = 400 AND named IS NOT NULL
                            THEN format('field "%s"', named)
                            ELSE nullif(detail, '') END,
            'hint', nullif(hint, '')),
        DETAIL = json_build_object('status', status, 'headers', json_build_object());
END
$$;
COMMENT ON FUNCTION apikeys.http_refuse(text, text, text, text, text, text, text[]) IS
'Raise an error that PostgREST answers with the right status.
404 for P0002, 409 for conflicts, 400 for bad values, with the field in the details. Returns for any other: PostgREST knows those.';
REVOKE EXECUTE ON FUNCTION apikeys.http_refuse(text, text, text, text, text, text, text[]) FROM PUBLIC;

-- It is too late for the secret that came, not for those to come.
CREATE FUNCTION apikeys.http_refuse_url() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('request.method', true) IN ('GET', 'HEAD') THEN
        RAISE SQLSTATE 'PGRST' USING
            MESSAGE = json_build_object('code', '0A000',
                'message', 'a secret must not be sent in a URL',
                'details', 'Servers and proxies log URLs.',
                'hint', 'Send it in the body of a POST, and regenerate a key whose secret was sent so.'),
            DETAIL = json_build_object('status', 405, 'headers', json_build_object('Allow', 'POST'));
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.http_refuse_url() IS
'Refuse a request that has its arguments in the URL.
405 for GET and HEAD.';
REVOKE EXECUTE ON FUNCTION apikeys.http_refuse_url() FROM PUBLIC;

-- The histories of what does not exist are empty: in SQL that is an answer.
CREATE FUNCTION apikeys.http_known(key_id uuid) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.id = http_known.key_id) THEN
        PERFORM apikeys.refuse_unknown('key', http_known.key_id::text);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.http_known(uuid) IS
'Refuse the id of a key that does not exist.
A deleted key exists until it is purged. Raises P0002.';
REVOKE EXECUTE ON FUNCTION apikeys.http_known(uuid) FROM PUBLIC;

CREATE FUNCTION apikeys.http_known(user_id text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM apikeys.users u WHERE u.id = http_known.user_id)
        AND NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.user_id = http_known.user_id) THEN
        PERFORM apikeys.refuse_unknown('user', http_known.user_id);
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.http_known(text) IS
'Refuse the id of a user who does not exist.
Who has a key exists, and who is deleted until purged. Raises P0002.';
REVOKE EXECUTE ON FUNCTION apikeys.http_known(text) FROM PUBLIC;

-- In SQL, a call without it is none.
CREATE FUNCTION apikeys.http_require(name text, is_null boolean) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF is_null THEN
        RAISE null_value_not_allowed USING MESSAGE = format('%s must not be null', name), COLUMN = name;
    END IF;
END
$$;
COMMENT ON FUNCTION apikeys.http_require(text, boolean) IS
'Refuse a call without an argument that it needs.
Raises 22004, and names the argument.';
REVOKE EXECUTE ON FUNCTION apikeys.http_require(text, boolean) FROM PUBLIC;

CREATE FUNCTION apikeys.http_json(name text, value jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE WHEN jsonb_typeof(value) = 'string' THEN (value #>> '{}')::jsonb ELSE value END;
EXCEPTION WHEN data_exception THEN
    RAISE invalid_parameter_value USING MESSAGE = format('%s is no JSON', name), COLUMN = name;
END
$$;
COMMENT ON FUNCTION apikeys.http_json(text, jsonb) IS
'JSON that came in a URL.
PostgREST makes a JSON string of it. Raises 22023, and names the argument.';
REVOKE EXECUTE ON FUNCTION apikeys.http_json(text, jsonb) FROM PUBLIC;

CREATE FUNCTION apikeys.count_plans(include_deleted boolean) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT count(*) FROM apikeys.plans p
 WHERE count_plans.include_deleted OR p.deleted_at IS NULL
$$;
COMMENT ON FUNCTION apikeys.count_plans(boolean) IS
'Count plans.
The filter is that of apikey_plan_list.';
REVOKE EXECUTE ON FUNCTION apikeys.count_plans(boolean) FROM PUBLIC;

CREATE FUNCTION apikeys.count_users(plan_id text, metadata jsonb, include_deleted boolean) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT count(*) FROM apikeys.users u
 WHERE (count_users.plan_id IS NULL OR u.plan_id = count_users.plan_id)
   AND (count_users.metadata IS NULL OR u.metadata @> count_users.metadata)
   AND (count_users.include_deleted OR u.deleted_at IS NULL)
$$;
COMMENT ON FUNCTION apikeys.count_users(text, jsonb, boolean) IS
'Count users.
The filters are those of apikey_user_list.';
REVOKE EXECUTE ON FUNCTION apikeys.count_users(text, jsonb, boolean) FROM PUBLIC;

CREATE FUNCTION apikeys.count_roles() RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT count(*) FROM apikeys.roles
$$;
COMMENT ON FUNCTION apikeys.count_roles() IS
'Count roles.
All of them, as apikey_role_list lists them.';
REVOKE EXECUTE ON FUNCTION apikeys.count_roles() FROM PUBLIC;

-- Arguments are passed on by position: no name can be mistaken for another. Each
-- has a default, so that PostgREST finds the function without it, and the answer
-- can say what is missing; but not where NULL says something ("delta", "value"),
-- nor in the second of two functions of one name, which has "every".
DO LANGUAGE plpgsql $make$
DECLARE
    f record;
    call text;
    first text;
    total text;
    body text;
    result text;
BEGIN
    FOR f IN
        SELECT p.oid, p.proname, p.pronargs, p.proretset, p.provolatile,
               p.proargnames, format_type(p.prorettype, NULL) AS type,
               (SELECT t.typtype = 'c' FROM pg_catalog.pg_type t WHERE t.oid = p.prorettype) AS is_row,
               pg_get_function_identity_arguments(p.oid) AS identity,
               a.*,
               array_position(p.proargnames, 'page_offset') AS offset_at,
               coalesce(array_position(p.proargnames, 'after'), array_position(p.proargnames, 'before')) AS from_at,
               array_position(p.proargnames, 'patch') AS patch_at,
               obj_description(p.oid, 'pg_proc') AS comment
          FROM pg_catalog.pg_proc p
          JOIN pg_catalog.pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          JOIN pg_catalog.pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
         CROSS JOIN LATERAL (
                SELECT string_agg(concat_ws(' DEFAULT ', quote_ident(n.name) || ' ' || n.type,
                                            CASE WHEN n.is_optional THEN pg_get_function_arg_default(p.oid, n.place::int)
                                                 WHEN NOT p.proargnames && '{delta, value, every}' THEN 'NULL' END),
                                  ', ' ORDER BY n.place) AS arguments,
                       string_agg('$' || n.place, ', ' ORDER BY n.place) AS passed,
                       string_agg(n.name, ', ' ORDER BY n.place) FILTER (WHERE NOT n.is_optional) AS required,
                       string_agg(format('PERFORM apikeys.http_require(%L, $%s IS NULL);', n.name, n.place) || E'\n    ', '' ORDER BY n.place)
                           FILTER (WHERE NOT n.is_optional AND n.name NOT IN ('key', 'delta', 'value')) AS checks,
                       string_agg(format('$%1$s := apikeys.http_json(%2$L, $%1$s);', n.place, n.name) || E'\n    ', '' ORDER BY n.place)
                           FILTER (WHERE n.type = 'jsonb' AND p.provolatile <> 'v') AS parsed
                  FROM (SELECT x.place, p.proargnames[x.place] AS name, format_type(x.type, NULL) AS type,
                               x.place > p.pronargs - p.pronargdefaults AS is_optional
                          FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS x(type, place)) n) a
         WHERE e.extname = 'apikeys' AND p.pronamespace = '@extschema@'::regnamespace
           AND p.proname NOT IN ('apikey_grant', 'apikey_purge', 'apikey_authenticate', 'apikey_verify_http')
           AND p.proname !~ '^apikey_current'
         ORDER BY p.proname
    LOOP
        call := format('@extschema@.%I(%s)', f.proname, f.passed);
        IF f.proretset AND f.proname !~ '_(get|whoami)$' THEN
            result := 'json';
            total := CASE f.proname
                WHEN 'apikey_list' THEN '@extschema@.apikey_count($1, $2, $3, $4, $8)'
                WHEN 'apikey_plan_list' THEN 'apikeys.count_plans($3)'
                WHEN 'apikey_user_list' THEN 'apikeys.count_users($1, $2, $5)'
                WHEN 'apikey_role_list' THEN 'apikeys.count_roles()'
                ELSE CASE WHEN 'page_size' = ANY (f.proargnames) THEN 'NULL' ELSE 'items' END
            END;
            first := coalesce('$' || f.offset_at, '0');
            IF f.from_at IS NOT NULL THEN
                first := format('CASE WHEN $%s IS NULL THEN %s END', f.from_at, first);
            END IF;
            body := format('SELECT coalesce(json_agg(x), ''[]''), count(*) INTO answer, items FROM %s x;
    PERFORM apikeys.http_range(%s, items, %s);', call, first, total);
        ELSIF f.proretset THEN
            result := f.type;
            body := format('SELECT * INTO answer FROM %s;
    IF NOT FOUND THEN
        RAISE no_data_found USING MESSAGE = ''there is no such %s'';
    END IF;', call, coalesce(substring(f.proname FROM '^apikey_(.*)_get$'), 'key'));
        ELSE
            result := f.type;
            body := format('answer := %s;', call);
        END IF;
        IF f.proname ~ '_(requests|usage_series|ledger)$' THEN
            body := 'PERFORM apikeys.http_known($1);
    ' || body;
        END IF;
        body := concat(f.checks, f.parsed, body);
        IF f.proargnames && '{key, keys}' THEN
            body := 'PERFORM apikeys.http_refuse_url();
    ' || body;
        END IF;
        IF f.proname ~ '_create$' THEN
            body := body || '
    PERFORM set_config(''response.status'', ''201'', true);';
        END IF;
        IF result = 'apikeys.issued_key' THEN
            body := body || '
    PERFORM apikeys.http_header(''Cache-Control'', ''no-store'');';
        END IF;

        EXECUTE format($sql$
CREATE FUNCTION apikeys_http.%1$I(%2$s) RETURNS %3$s
LANGUAGE plpgsql %4$s SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    answer %3$s;
    items bigint;
    state text;
    message text;
    detail text;
    hint text;
    field text;
    violated text;
BEGIN
    %5$s
    RETURN answer;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
        field = COLUMN_NAME, violated = CONSTRAINT_NAME;
    PERFORM apikeys.http_refuse(state, message, detail, hint, field, violated, %6$s);
    RAISE;
END
$body$;
REVOKE EXECUTE ON FUNCTION apikeys_http.%1$I(%7$s) FROM PUBLIC;
COMMENT ON FUNCTION apikeys_http.%1$I(%7$s) IS %8$L$sql$,
            f.proname, f.arguments, result,
            -- HEAD runs a function that gives one value only if it is VOLATILE.
            CASE WHEN f.provolatile = 'v' OR result = 'json' OR NOT f.is_row THEN 'VOLATILE' ELSE 'STABLE' END,
            body,
            concat(quote_literal(coalesce(f.proargnames, '{}')::text), '::text[]',
                   CASE WHEN f.patch_at IS NOT NULL THEN
                       format(' || ARRAY(SELECT jsonb_object_keys(CASE jsonb_typeof($%1$s) WHEN ''object'' THEN $%1$s END))', f.patch_at)
                   END),
            f.identity,
            f.comment || coalesce(E'\nRequired: ' || f.required || '.', '')
            || E'\nOver HTTP: 400 for a bad value (details names the field), 404 for what does not exist, 409 for a conflict; code is the SQLSTATE.');
    END LOOP;
END
$make$;

-- Metrics. A domain of this name has PostgREST leave the choice of the media
-- type to the function.

CREATE DOMAIN apikeys_http."*/*" AS text;
COMMENT ON DOMAIN apikeys_http."*/*" IS 'An answer whose media type the function tells';

CREATE FUNCTION apikeys_http.apikey_metrics() RETURNS apikeys_http."*/*"
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    accepted text := nullif(current_setting('request.headers', true), '')::json ->> 'accept';
    -- The older text format has the suffix in the names of counters as well.
    is_old boolean := coalesce(accepted LIKE '%text/plain%' AND accepted NOT LIKE '%openmetrics-text%', false);
    suffix text := CASE WHEN is_old THEN '_total' ELSE '' END;
    counters CONSTANT text[] := '{history_rows, history_dropped, history_unrecorded,
        usage_rows_written, ceilings_raised, rollup_rows_written, reservations_settled,
        reservations_released, charge_waits, evictions, flush_failures}';
    answer text;
BEGIN
    WITH stats AS (
        SELECT s.name ~ '^[A-Z_]+$' AS is_outcome, s.name,
               CASE WHEN s.name LIKE E'%\\_ms' THEN round(s.value / 1000.0, 3) ELSE s.value END AS value,
               'apikeys_' || CASE s.name
                   WHEN 'seconds_since_flush' THEN 'flush_age_seconds'
                   ELSE regexp_replace(s.name, '_ms$', '_seconds') END AS metric,
               upper(left(s.description, 1)) || substr(s.description, 2) || '.' AS help,
               s.name = ANY (counters) AS is_counter
          FROM apikeys.statistics() s
    ), families AS (
        SELECT 1 AS place, '' AS name, concat(
                   format(E'# HELP apikeys_verifications%1$s Verifications by outcome.\n# TYPE apikeys_verifications%1$s counter\n', suffix),
                   string_agg(format(E'apikeys_verifications_total{outcome="%s"} %s\n', s.name, s.value), '' ORDER BY s.name)) AS lines
          FROM stats s WHERE s.is_outcome
        UNION ALL
        SELECT 2, s.name, CASE WHEN s.is_counter
                   THEN format(E'# HELP %1$s%2$s %3$s\n# TYPE %1$s%2$s counter\n%1$s_total %4$s\n',
                               s.metric, suffix, s.help, s.value)
                   ELSE format(E'# HELP %1$s %2$s\n# TYPE %1$s gauge\n%1$s %3$s\n',
                               s.metric, s.help, s.value) END
          FROM stats s WHERE NOT s.is_outcome
    )
    SELECT string_agg(f.lines, '' ORDER BY f.place, f.name)
           || CASE WHEN is_old THEN '' ELSE E'# EOF\n' END
      INTO answer FROM families f;
    PERFORM apikeys.http_header('Content-Type', CASE
        WHEN is_old THEN 'text/plain; version=0.0.4; charset=utf-8'
        ELSE 'application/openmetrics-text; version=1.0.0; charset=utf-8' END);
    PERFORM apikeys.http_header('Cache-Control', 'no-store');
    RETURN answer;
END
$$;
COMMENT ON FUNCTION apikeys_http.apikey_metrics() IS
'Statistics for Prometheus, as OpenMetrics.
Those of apikeys.stats: verifications by outcome, what the worker writes, and the state of the meter. Counters begin anew with the server. Who accepts text/plain and no OpenMetrics gets the older text format.';
REVOKE EXECUTE ON FUNCTION apikeys_http.apikey_metrics() FROM PUBLIC;

-- The median of 50 calls of a query, in ms. Its parameters are a key that was
-- used, the key's user, and a busy key. Variable: query.
SET jit = off;
SELECT set_config('bench.query', :'query', false) AS query \gset
DO $$
DECLARE
    keys uuid[] := ARRAY(SELECT id FROM bench.ids WHERE n IN
        (SELECT ceil(random() * keys) FROM bench.ids_made, generate_series(1, 52)));
    busy uuid := (SELECT id FROM bench.ids WHERE n = 1);
    users text[] := ARRAY(SELECT k.user_id FROM unnest(keys) WITH ORDINALITY AS i(id, place)
                            JOIN apikeys.keys k USING (id) ORDER BY i.place);
    times float8[];
    began timestamptz;
BEGIN
    FOR i IN 1 .. cardinality(keys) LOOP
        began := clock_timestamp();
        EXECUTE current_setting('bench.query') USING keys[i], users[i], busy;
        times[i] := extract(epoch FROM clock_timestamp() - began) * 1000;
    END LOOP;
    PERFORM set_config('bench.ms',
        (SELECT round(percentile_cont(0.5) WITHIN GROUP (ORDER BY t)::numeric, 3)::text
           FROM unnest(times) t), false);
END
$$;
SELECT current_setting('bench.ms');

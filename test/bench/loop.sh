# loop.sh: many calls in one statement. Bar 6.

picks=20000 # at random, with their secrets

run_loop() { # expression
    # shellcheck disable=SC2046
    set -- $(sql bench -F ' ' -v expression="$1" -f "$here/loop.sql")
    tps=$1
    transactions=$2
    [ "$2" -eq $((2 * picks)) ] || {
        why="$2 calls, $((2 * picks)) expected"
        return 1
    }
}

run_loop_verify() {
    before=$(verified bench)
    run_loop "nullif((apikey_verify(p.secret, '/v1/chat', 'POST')).valid, false)" &&
        agrees bench "$before" "$transactions"
}

make_picks() {
    for table in bench.other_picks bench.picks; do
        sql bench -c 'SET client_min_messages = warning' -c "DROP TABLE IF EXISTS $table" \
            -c "CREATE TABLE $table AS
                SELECT ceil(random() * $rows)::bigint AS n, k.secrets[ceil(random() * $warm_keys)] AS secret
                  FROM (SELECT array_agg(secret) AS secrets FROM bench.keys WHERE chain = 'warm') k,
                       generate_series(1, $picks)" \
            -c "VACUUM ANALYZE $table"
    done
}

part_loop() {
    n=1
    while [ $n -le $rounds ]; do
        make_picks
        rest bench
        printf '%s' "Round $n of $rounds, µs a call in one statement:" >&2
        round 'loop: a primary-key look-up, µs' run_loop \
            '(SELECT t.text FROM bench.texts t WHERE t.n = p.n)'
        round 'loop: digest(), µs' run_loop "digest(p.secret, 'sha256')"
        round 'loop: apikey_verify, µs' run_loop_verify
        round 'loop: by hand, µs' run_loop \
            "nullif((byhand.verify(p.secret, '/v1/chat', 'POST')).valid, false)"
        note
        n=$((n + 1))
    done
    bar 6 'one statement: µs a verification ÷ µs a primary-key look-up' '<= 1.5' \
        "$(ratio 'loop: apikey_verify, µs' 'loop: a primary-key look-up, µs')"
}

# clients.sh: the contestants a to e, from clients, those next to each other that a
# bar compares. Bars 1 to 4. More and shorter rounds than else: a noisy machine has
# its moods for seconds.

run_select_one() {
    pgbench_run bench -f "$scripts/select_one.sql"
}

run_select_text() {
    pgbench_run bench -f "$scripts/select_text.sql"
}

run_by_hand() { # chain
    # shellcheck disable=SC2046
    set -- "$1" $(sql bench -F ' ' -c 'SELECT usage, history FROM byhand.verified')
    pgbench_run bench -D chain="$1" -f "$scripts/by_hand.sql" || return 1
    # shellcheck disable=SC2046
    set -- "$@" $(sql bench -F ' ' -c 'SELECT usage, history FROM byhand.verified')
    [ $(($4 - $2)) -ne "$transactions" ] || [ $(($5 - $3)) -ne "$transactions" ] || return 0
    why="$transactions transactions, usage $(($4 - $2)), $(($5 - $3)) rows of history"
    return 1
}

run_verify() { # chain
    before=$(verified bench)
    pgbench_run bench -D chain="$1" -f "$scripts/verify.sql" || return 1
    agrees bench "$before" "$transactions"
}

run_verify_no_history() {
    set_to bench apikeys.history off
    before=$(verified bench)
    rc=0
    { pgbench_run bench -D chain=warm -f "$scripts/verify.sql" &&
        agrees bench "$before" 0; } || rc=1
    set_to bench apikeys.history ''
    return $rc
}

part_clients() {
    select_one='(a) SELECT 1, /s'
    select_text='(b) SELECT by primary key, /s'
    by_hand='(c) by hand, 10,000 keys, /s'
    by_hand_hot='(c) by hand, one key, /s'
    redis_name='(d) Redis, 10,000 keys, /s'
    verify='(e) apikey_verify, 10,000 keys, /s'
    verify_hot='(e) apikey_verify, one key, /s'
    verify_no_history='(e) apikey_verify, 10,000 keys, history off, /s'
    usual="$rounds $seconds"
    [ $quick = yes ] || rounds=9 seconds=4
    redis_start
    n=1
    while [ $n -le $rounds ]; do
        rest bench
        printf '%s' "Round $n of $rounds, per second:" >&2
        round "$by_hand" run_by_hand warm
        round "$by_hand_hot" run_by_hand hot
        round "$redis_name" run_redis
        round "$select_one" run_select_one
        round "$select_text" run_select_text
        round "$verify" run_verify warm
        round "$verify_no_history" run_verify_no_history
        round "$verify_hot" run_verify hot
        note
        n=$((n + 1))
    done
    rounds=${usual% *} seconds=${usual#* }
    redis_stop

    bar 1 'verify, 10,000 warm keys ÷ (b)' '>= 0.9' "$(ratio "$verify" "$select_text")"
    bar 1 'the same, history off' '>= 1.0' "$(ratio "$verify_no_history" "$select_text")"
    bar 2 'verify ÷ (d)' '>= 1.5' "$(ratio "$verify" "$redis_name")"
    bar 3 'verify ÷ (c)' '>= 10' "$(ratio "$verify" "$by_hand")"
    bar 3 'verify, one hot key ÷ (c), one hot key' '>= 25' "$(ratio "$verify_hot" "$by_hand_hot")"
    bar 4 'verify, one hot key ÷ 10,000 warm keys' '>= 0.9' "$(ratio "$verify_hot" "$verify")"
}

# many.sh: a hundred keys in one call. Bar 13.

run_many() { # history rows a verification
    before=$(verified bench)
    pgbench_run bench -f "$scripts/verify_many.sql" || return 1
    transactions=$((transactions * 100))
    tps=$((tps * 100))
    agrees bench "$before" $((transactions * $1))
}

run_many_no_history() {
    set_to bench apikeys.history off
    rc=0
    run_many 0 || rc=1
    set_to bench apikeys.history ''
    return $rc
}

part_many() {
    n=1
    while [ $n -le $rounds ]; do
        printf '%s' "Round $n of $rounds, per second:" >&2
        round '(e) beside the next, /s' run_verify warm
        round 'apikey_verify_many of 100, /s' run_many 1
        round '(e) without history, beside the next, /s' run_verify_no_history
        round 'apikey_verify_many of 100, no history, /s' run_many_no_history
        note
        n=$((n + 1))
    done
    bar 13 'verify_many of 100 ÷ verify' '>= 5' \
        "$(ratio 'apikey_verify_many of 100, /s' '(e) beside the next, /s')"
    bar 13 'the same, history off' '>= 5' \
        "$(ratio 'apikey_verify_many of 100, no history, /s' '(e) without history, beside the next, /s')"
}

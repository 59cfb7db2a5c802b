# zipf.sh: all keys, by Zipf's law. Bar 5.
#
# What is measured is half of the second minute: last_used_at is written once a
# minute, and a row of apikeys.usage once in ten seconds, for as long as their
# key is used, which takes a while to come to; rollups are written every 30 s.

# A script a chain of Zipf's, each with its own key, drawn by their weights.
make_zipf() {
    : >"$work/zipf"
    sql bench -c 'SELECT substr(chain, 6), weight FROM bench.zipf' >"$work/weights"
    while IFS='|' read -r chain weight; do
        sed "s/:chain/'zipf $chain'/; s/started/started$chain/; s/key\\b/key$chain/g" \
            "$scripts/verify.sql" | sed "s/SELECT key$chain/SELECT key AS key$chain/" >"$work/zipf$chain.sql"
        say "-D started$chain=0 -f $work/zipf$chain.sql@$weight" >>"$work/zipf"
    done <"$work/weights"
}

run_verify_zipf() {
    before=$(verified bench)
    usual="$warm $seconds"
    [ $quick = yes ] || warm=60 seconds=30
    rc=0
    # shellcheck disable=SC2046
    { pgbench_run bench $(cat "$work/zipf") &&
        agrees bench "$before" "$transactions"; } || rc=1
    warm=${usual% *} seconds=${usual#* }
    return $rc
}

part_zipf() {
    select_between='(b) SELECT by primary key, between runs by Zipf, /s'
    verify_zipf="(e) apikey_verify, Zipf over $rows keys, /s"
    make_zipf
    n=1
    while [ $n -le $rounds ]; do
        # No checkpoint comes in a run.
        sql bench -c 'TRUNCATE apikeys.requests' -c CHECKPOINT
        rest bench
        printf '%s' "Round $n of $rounds, by Zipf's law, per second:" >&2
        round "$select_between" run_select_text
        round "$verify_zipf" run_verify_zipf
        note
        n=$((n + 1))
    done
    bar 5 "verify, Zipf over $rows keys ÷ (b)" '>= 0.8' "$(ratio "$verify_zipf" "$select_between")"
}

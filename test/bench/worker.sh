# worker.sh: how fast the worker writes history, doing nothing else. Bar 11.

# Fills two fifths of the buffer (at a half, the worker would begin), then lets
# the worker go. Sets tps to rows a second.
run_worker() {
    hold_history
    since=$(sql bench -c 'SELECT clock_timestamp()')
    rows_before=$(sql bench -c 'SELECT count(*) FROM apikeys.requests')
    filled=0
    chunks=$(statistic history_chunks_free)
    while [ "$(statistic history_chunks_free)" -gt $((chunks * 3 / 5)) ]; do
        run_loop "nullif((apikey_verify(p.secret, '/v1/chat', 'POST')).valid, false)" || return 1
        filled=$((filled + transactions))
    done
    [ "$(sql bench -c 'SELECT count(*) FROM apikeys.requests')" -eq "$rows_before" ] || {
        why='the worker did not wait'
        return 1
    }
    sql bench -c "SELECT bench.time_of_flush('$since')" >"$work/out" &
    set_to bench apikeys.flush_interval 10ms
    wait $!
    tps=$(calc "$filled / $(cat "$work/out")")
    written=$(($(sql bench -c 'SELECT count(*) FROM apikeys.requests') - rows_before))
    why="$written rows of $filled, in $(cat "$work/out") s"
    [ $written -eq $filled ] && [ "$tps" != nan ]
}

part_worker() {
    make_picks
    sql bench -f "$here/worker.sql"
    printf '%s' "History rows a second:" >&2
    n=0 # the first is for what a checkpoint leaves to do
    while [ $n -le $rounds ]; do
        if [ $n -eq 0 ]; then
            run_worker || :
        else
            round 'worker, rows of history, /s' run_worker
        fi
        n=$((n + 1))
    done
    set_to bench apikeys.flush_interval ''
    note
    bar 11 'worker, rows of history a second' '>= 200000' "$(median 'worker, rows of history, /s')"
}

# memory.sh: shared memory a key and a record. Bar 10.

statistic() { sql bench -c "SELECT value FROM apikeys.stats WHERE name = '$1'"; }

# The worker shall not take anything out of the history for a while.
hold_history() {
    set_to bench apikeys.flush_interval 60s
    sleep 3
}

part_memory() {
    note "Shared memory"
    make_picks
    hold_history

    # Keys that were never used, with a quota and a rate.
    before=$(statistic tracked_keys)
    sql bench -c "SELECT count(*) FROM (SELECT (apikey_verify(k.api_key)).valid
        FROM generate_series(1, 100) n, apikey_create('memory ' || n, plan_id => 'bench') k) v
        WHERE valid" >"$work/out"
    counts=$(calc "($(statistic tracked_keys) - $before) / $(cat "$work/out")")
    a_count=$(sql bench -c "SELECT sum(allocated_size) / current_setting('apikeys.max_tracked_keys')::bigint
        FROM pg_shmem_allocations WHERE name IN ('apikeys meter', 'apikeys counts')")

    chunks=$(statistic history_chunks_free)
    run_loop "nullif((apikey_verify(p.secret, '/v1/chat', 'POST')).valid, false)"
    record=$(calc "($chunks - $(statistic history_chunks_free)) * 8192 / $transactions")
    set_to bench apikeys.flush_interval ''

    bar 10 'shared memory a tracked key with a quota and a rate' '<= 128' \
        "$(calc "$counts * $a_count")" bytes
    bar 10 'history buffer a record' '<= 256' "$record" bytes
}

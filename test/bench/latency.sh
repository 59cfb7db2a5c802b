# latency.sh: how long the slowest one in a hundred takes, the worker writing
# meanwhile. Bar 8.

# Sets tps to the 99th percentile in µs, of a fifth of all calls.
p99() {
    awk -v warm=$warm '{ t = $5 + $6 / 1000000; if (!NR || !first || t < first) first = t
            us[NR] = $3; at[NR] = t }
        END { for (i = 1; i <= NR; i++) if (at[i] - first >= warm) print us[i] }' \
        "$work"/latencies* | sort -n |
        awk '{ us[NR] = $1 } END { print us[int(NR * 0.99 + 0.5)] }'
}

run_latency() { # one of the contestants' commands
    rm -f "$work"/latencies*
    logged="--log --log-prefix=$work/latencies --sampling-rate=0.2"
    rc=0
    "$@" || rc=1
    logged=
    tps=$(p99)
    return $rc
}

part_latency() {
    n=1
    while [ $n -le $rounds ]; do
        rest bench
        printf '%s' "Round $n of $rounds, 99th percentile, µs:" >&2
        round 'p99 of (b), µs' run_latency run_select_text
        round 'p99 of (e), µs' run_latency run_verify warm
        note
        n=$((n + 1))
    done
    rm -f "$work"/latencies*
    bar 8 'p99 of verify ÷ p99 of (b)' '<= 1.5' "$(ratio 'p99 of (e), µs' 'p99 of (b), µs')"
}

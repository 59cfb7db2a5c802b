# wal.sh: WAL a verification, with all that the worker writes of it. Bar 9.

lsn() { sql bench -c "SELECT pg_current_wal_insert_lsn() - '0/0'"; }

# A checkpoint, a run for the first touches after it, then what is measured; each
# is as long as what the worker does from time to time, once a minute.
wal_a_request() { # contestant, command
    contestant=$1
    shift
    seconds_before=$seconds
    [ $quick = yes ] || seconds=60
    sql bench -c CHECKPOINT
    wal=nan
    if "$@"; then
        began=$(lsn)
        if "$@"; then
            wal=$(calc "($(lsn) - $began) / $transactions")
            sample "$contestant" "$wal"
        fi
    fi
    seconds=$seconds_before
    [ "$wal" != nan ] || {
        uncounted=$((uncounted + 1))
        note "$contestant does not count: ${why:-it failed}"
    }
}

part_wal() {
    note "WAL a request"
    n=1
    wal_a_request 'WAL of (c), bytes' run_by_hand warm
    wal_a_request 'WAL of (e), bytes' run_verify warm
    bar 9 'WAL a verification' '<= 250' "$(median 'WAL of (e), bytes')" bytes
    bar 9 'that ÷ (c)' '<= 0.333' "$(ratio 'WAL of (e), bytes' 'WAL of (c), bytes')"
}

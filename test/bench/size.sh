# size.sh: with ten million keys, and much history. Bars 7 and 14.

# As many rows of history as the disk allows, 160 bytes each, at most ten a key.
history_rows() { # keys
    df -Pk "$home" | awk -v most=$(($1 * 10)) 'NR == 2 {
        n = ($4 - 25 * 1024 * 1024) * 1024 / 160
        if (n > most)
            n = most
        printf "%d", (n > 0) * n }'
}

make_history() { # database, keys, rows
    [ "$(sql "$1" -c "SELECT to_regclass('bench.ids_made')")" = '' ] || return 0
    note "Making $3 rows of history in $1"
    sql "$1" -v keys="$2" -v rows="$3" -f "$here/history.sql" || {
        sql postgres -c "DROP DATABASE $1" # half of it is made
        die "could not make the history"
    }
}

run_select_of() { # database, script
    pgbench_run "$1" -D step=$((rows / warm_keys)) -D warm_keys=$warm_keys -f "$scripts/$2"
}

run_verify_of() { # database
    before=$(verified "$1")
    pgbench_run "$1" -D chain=warm -f "$scripts/verify.sql" || return 1
    agrees "$1" "$before" "$transactions"
}

# The first page of each list: ms, the median of 50, with different keys.
run_page() { # database, query with :id, :user, :busy
    tps=$(sql "$1" -v query="$2" -f "$here/page.sql")
    [ -n "$tps" ]
}

# What each is called in the table, and the query.
pages() {
    cat <<'END'
apikey_list()|SELECT FROM apikey_list()
apikey_list(user_id)|SELECT FROM apikey_list(user_id => $2)
apikey_list(plan_id)|SELECT FROM apikey_list(plan_id => 'bench')
apikey_list(after)|SELECT FROM apikey_list(after => $1)
apikey_list(metadata)|SELECT FROM apikey_list(metadata => '{"tier": "gold"}')
apikey_usage|SELECT FROM apikey_usage($1)
apikey_requests|SELECT FROM apikey_requests($1)
apikey_requests, a busy key|SELECT FROM apikey_requests($3)
END
}

part_size() {
    if [ $quick = yes ]; then
        rows=100000
    else
        rows=10000000
    fi
    make_database bench_small $warm_keys $warm_keys off
    make_database bench_large $rows $warm_keys off
    sql postgres -c CHECKPOINT
    n=1
    while [ $n -le $rounds ]; do
        printf '%s' "Round $n of $rounds, per second:" >&2
        rows_large=$rows
        rows=$warm_keys
        round "(b) of $rows rows, /s" run_select_of bench_small select_text.sql
        round "(e) of $rows keys, /s" run_verify_of bench_small
        rows=$rows_large
        round "(b) of $rows rows, /s" run_select_of bench_large select_text.sql
        round "(b) of $rows rows, $warm_keys used, /s" run_select_of bench_large select_some.sql
        round "(e) of $rows keys, /s" run_verify_of bench_large
        note
        n=$((n + 1))
    done
    small=$(ratio "(e) of $warm_keys keys, /s" "(b) of $warm_keys rows, /s")
    bar 7 "$rows keys: verify ÷ (b), ÷ the same of $warm_keys" '>= 0.95' \
        "$(calc "$(ratio "(e) of $rows keys, /s" "(b) of $rows rows, /s") / $small")"
    bar 7 "the same where (b) uses only $warm_keys rows too" '>= 0.95' \
        "$(calc "$(ratio "(e) of $rows keys, /s" \
            "(b) of $rows rows, $warm_keys used, /s") / $small")"

    make_history bench_small $warm_keys $((warm_keys * 10))
    make_history bench_large $rows "$(history_rows $rows)"
    history=$(sql bench_large -c 'SELECT rows FROM bench.ids_made')
    n=1
    while [ $n -le $rounds ]; do
        printf '%s' "Round $n of $rounds, ms a page:" >&2
        pages >"$work/pages"
        while IFS='|' read -r what query <&3; do
            round "$what, small, ms" run_page bench_small "$query"
            round "$what, large, ms" run_page bench_large "$query"
        done 3<"$work/pages"
        note
        n=$((n + 1))
    done
    while IFS='|' read -r what query; do
        bar 14 "$what, $rows keys, $history rows" '<= 5' "$(median "$what, large, ms")" ms
        bar 14 "$what ÷ with $warm_keys keys, $((warm_keys * 10)) rows" '<= 1.5' \
            "$(ratio "$what, large, ms" "$what, small, ms")"
    done <"$work/pages"
}

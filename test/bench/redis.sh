# redis.sh: contestant d, Redis with a script that does what a verification
# does, but for the digest, plans, periods and rates. Its snapshots are off: it
# has its log.

redis_keys=10000

redis_cli() {
    LD_LIBRARY_PATH=$redis_libraries "$redis_bin/redis-cli" -s "$home/redis.sock" "$@"
}

redis_start() {
    rm -rf "$work/redis"
    mkdir "$work/redis"
    LD_LIBRARY_PATH=$redis_libraries "$redis_bin/redis-server" --port 0 \
        --unixsocket "$home/redis.sock" --dir "$work/redis" --logfile log \
        --appendonly yes --appendfsync everysec --save '' >/dev/null &
    redis_pid=$!
    waited=0
    until [ "$(redis_cli ping 2>/dev/null)" = PONG ]; do
        waited=$((waited + 1))
        [ $waited -lt 100 ] || die "Redis does not start; see $work/redis/log"
        sleep 0.1
    done
    awk -v n=$redis_keys 'BEGIN {
        for (i = 0; i < n; i++)
            printf "HSET key:%012d enabled 1 limit 1000000000 name key%d user user%d count 0\r\n", i, i, i
    }' | redis_cli --pipe >/dev/null
    redis_script=$(redis_cli script load "$(cat "$here/verify.lua")")
    redis_requests=100000
    redis_round $redis_requests
}

redis_stop() {
    [ -n "${redis_pid:-}" ] || return 0
    kill "$redis_pid" 2>/dev/null || :
    wait "$redis_pid" 2>/dev/null || :
    redis_pid=
    rm -rf "$work/redis"
}

# The sum of all counts, and how many entries the stream was ever given.
redis_counts() {
    redis_cli eval "local sum = 0
        for i = 0, $redis_keys - 1 do
            sum = sum + redis.call('HGET', string.format('key:%012d', i), 'count')
        end
        return tostring(sum)" 0
    redis_cli xinfo stream requests 2>/dev/null | sed -n '/^entries-added$/{ n; p; }' | grep . || say 0
}

redis_round() { # requests
    LD_LIBRARY_PATH=$redis_libraries timeout 300 "$redis_bin/redis-benchmark" \
        -s "$home/redis.sock" -c $clients -n "$1" -r $redis_keys -e --csv \
        evalsha "$redis_script" 1 key:__rand_int__ /v1/chat POST >"$work/out" 2>"$work/err" || {
        why=$(head -n 1 "$work/err")
        return 1
    }
    tps=$(awk -F '","' 'NR == 2 { printf "%.0f", $2 }' "$work/out")
    [ "${tps:-0}" -gt 0 ] || {
        why="redis-benchmark says: $(tail -n 1 "$work/out")"
        return 1
    }
    redis_requests=$((tps * seconds))
}

run_redis() {
    # shellcheck disable=SC2046
    set -- $redis_requests $(redis_counts)
    redis_round "$1" || return 1
    # shellcheck disable=SC2046
    set -- "$@" $(redis_counts)
    [ $(($4 - $2)) -ne "$1" ] || [ $(($5 - $3)) -ne "$1" ] || return 0
    why="$1 requests, $(($4 - $2)) counted, $(($5 - $3)) entries in the stream"
    return 1
}

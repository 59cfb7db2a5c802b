# lib.sh: what the parts of the benchmark share. Sourced by run.
#
# Samples are lines "contestant|value|round" in $work/samples, one a round that
# counts; the table is made of lines "number|what|bar|measured|reached" in
# $work/bars.

clients=8
threads=2
logged= # options of pgbench, to log each transaction

sql() { # database, psql's arguments
    on=$1
    shift
    psql -XAtq -d "$on" -v ON_ERROR_STOP=1 "$@"
}

note() { printf '%s\n' "$*" >&2; }

# ----- samples and bars -----

sample() { # contestant, value
    say "$1|$2|$n" >>"$work/samples"
}

# The median, least and most of the numbers in the input, and how many there are.
describe() {
    sort -g | awk '{ v[NR] = $1 }
        END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2,
                  v[1], v[NR], NR
              else print "nan nan nan 0" }'
}

# The same of a contestant's samples.
summary() { # contestant
    awk -F '|' -v name="$1" '$1 == name { print $2 }' "$work/samples" | describe
}

median() { # contestant
    summary "$1" | cut -d ' ' -f 1
}

calc() { # expression of awk
    awk "BEGIN { printf \"%.6g\", $1 }" 2>/dev/null || say nan
}

# The median of what the rounds have: a machine that is slower for a while is so
# for both sides of a round.
ratio() { # contestant, contestant
    awk -F '|' -v a="$1" -v b="$2" '
        $1 == a { x[$3] = $2 }
        $1 == b { y[$3] = $2 }
        END { for (n in x) if (n in y && y[n] > 0) print x[n] / y[n] }' "$work/samples" |
        describe | awk '$4 == 0 { print "nan"; exit } { printf "%.3f", $1 }'
}

# A line of the table. The bar is ">= x" or "<= x"; what could not be measured
# is not reached.
bar() { # number, what, bar, measured, unit
    reached=$(awk -v bar="$3" -v x="$4" 'BEGIN {
        split(bar, b, " ")
        if (x == "nan")
            print "not measured"
        else if (b[1] == ">=" ? x + 0 >= b[2] + 0 : x + 0 <= b[2] + 0)
            print "yes"
        else
            print "NO"
    }')
    say "$1|$2|$3${5:+ $5}|$4${5:+ $5}|$reached" >>"$work/bars"
}

# ----- pgbench -----

# Runs a script for $warm seconds and then $seconds, which are measured: what
# the worker still writes of one run is then what it wrote of the one before.
# Sets tps, and transactions, all that were made. Every answer is one row that
# says yes, or the script fails, and this too (with the reason in why).
pgbench_run() { # database, pgbench's arguments
    on=$1
    shift
    # shellcheck disable=SC2086
    if ! timeout $((warm + seconds + 120)) pgbench -n -M prepared -c $clients -j $threads \
        -T $((warm + seconds)) -P 1 -D rows=$rows -D started=0 $logged "$@" "$on" \
        >"$work/out" 2>"$work/err"; then
        why=$(grep -v '^progress:' "$work/err" | head -n 3)
        return 1
    fi
    transactions=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' "$work/out")
    if ! grep -q '^number of failed transactions: 0 ' "$work/out"; then
        why="pgbench says: $(grep '^number of failed' "$work/out")"
        return 1
    fi
    # All of it, less what was done up to the last report of the warm part.
    tps=$(awk -v warm=$warm '
        /^progress:/ && $2 < warm + 0.5 { n += $4 * ($2 - t); t = $2 }
        /^number of transactions actually processed:/ { all = $NF }
        /^tps = / { printf "%.0f", (all - n) / (all / $3 - t) }' "$work/err" "$work/out")
}

# ----- whether a round counts -----

# What apikeys has verified: outcomes VALID, others, usage, rows of history.
verified() { # database
    sql "$1" -F ' ' -c "SELECT * FROM bench.$verified_view"
}

# Waits until all of it is in the tables, or nothing has come for ten seconds.
settle() { # database, usage, history
    still=0
    seen=
    while [ $still -lt 50 ]; do
        now=$(sql "$1" -F ' ' -c "SELECT usage, history FROM bench.$verified_view")
        [ "${now% *}" -lt "$2" ] || [ "${now#* }" -lt "$3" ] || return 0
        still=$((still + 1))
        [ "$now" = "$seen" ] || still=0
        seen=$now
        sleep 0.2
    done
}

# Whether usage, history and transactions agree after a run; else why says why.
agrees() { # database, what verified() said before, history rows expected
    db=$1
    # shellcheck disable=SC2086
    set -- $2 "$3"
    settle "$db" $(($3 + transactions)) $(($4 + $5))
    # shellcheck disable=SC2046
    set -- "$@" $(verified "$db")
    [ $(($6 - $1)) -ne "$transactions" ] || [ $(($7 - $2)) -ne 0 ] ||
        [ $(($8 - $3)) -ne "$transactions" ] || [ $(($9 - $4)) -ne "$5" ] || return 0
    why="$transactions transactions, $(($6 - $1)) valid, $(($7 - $2)) denied, usage $(($8 - $3)), $(($9 - $4)) rows of history"
    return 1
}

# What the worker has put off, rollups for up to 30 s and last_used_at for eight
# flushes, is not the next contestant's. A quick one has not the time.
rest() { # database
    waited=0
    while [ $quick = no ] && [ $waited -lt 300 ] &&
        [ "$(sql "$1" -c "SELECT sum(value) FROM apikeys.stats
            WHERE name IN ('rollup_pending', 'last_used_pending')")" -gt 0 ]; do
        waited=$((waited + 1))
        sleep 0.2
    done
}

# One round of one contestant: the command runs it and sets tps.
round() { # contestant, command
    contestant=$1
    shift
    why=
    if "$@"; then
        sample "$contestant" "$tps"
        printf ' %s' "$tps" >&2
    else
        uncounted=$((uncounted + 1))
        sleep 3 # what the worker has yet to write is not the next one's
        printf '\n%s\n' "round $n of $contestant does not count: ${why:-it failed}" >&2
    fi
}

# Wait until a setting has a value in new sessions.
set_to() { # database, setting, value (empty: as it was)
    if [ -n "$3" ]; then
        sql "$1" -c "ALTER SYSTEM SET $2 = '$3'" -c 'SELECT pg_reload_conf()' >/dev/null
    else
        sql "$1" -c "ALTER SYSTEM RESET $2" -c 'SELECT pg_reload_conf()' >/dev/null
    fi
    waited=0
    while [ "$(sql "$1" -c "SELECT pending FROM (SELECT setting IS DISTINCT FROM coalesce(
            nullif('$3', ''), reset_val) OR '$3' = '' AND source = 'configuration file' AS pending
            FROM pg_settings WHERE name = '$2') s")" = t ] && [ $waited -lt 100 ]; do
        waited=$((waited + 1))
        sleep 0.1
    done
}

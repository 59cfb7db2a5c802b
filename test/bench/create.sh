# create.sh: making keys. Bar 12.

# The number of keys that were made agrees.
run_create() { # script
    keys_before=$(sql bench_create -c 'SELECT count(*) FROM apikeys.keys')
    pgbench_run bench_create -f "$scripts/$1" || return 1
    made=$(($(sql bench_create -c 'SELECT count(*) FROM apikeys.keys') - keys_before))
    why="$transactions transactions, $made keys"
    [ "$made" -eq "$transactions" ]
}

part_create() {
    sql postgres -c 'DROP DATABASE IF EXISTS bench_create' 2>/dev/null
    imported=nan
    make_database bench_create $rows $warm_keys on
    n=1
    while [ $n -le $rounds ]; do
        printf '%s' "Round $n of $rounds, keys a second:" >&2
        round 'INSERT INTO apikeys.keys, /s' run_create insert.sql
        round 'apikey_create, /s' run_create create.sql
        note
        n=$((n + 1))
    done
    sql postgres -c 'DROP DATABASE bench_create'
    bar 12 'apikey_create ÷ INSERT' '>= 0.8' "$(ratio 'apikey_create, /s' 'INSERT INTO apikeys.keys, /s')"
    bar 12 "$rows keys imported in one statement, a second" '>= 30000' "$imported"
}

# Builds PostgreSQL servers of special kinds from Debian's source; read by the
# scripts of this folder, which are called as
#
#   NAME MAJOR CACHE TREE FIGURES
#
# by "./dev test --long", not as root. TREE is a copy of this checkout. CACHE
# keeps sources and servers for the next run. A line "number|what was
# done|figures" is added to FIGURES. What cannot be done here is skipped, said
# so there, and the exit code is 77.

# A script sets number and what, then reads this file with its arguments.
major=$1 cache=$2 tree=$3 figures=$4

report() {
    echo "$number|$what|$*" >>"$figures"
}
skip() {
    echo "Skipped: $*"
    report "skipped: $*"
    exit 77
}

# The tarball of the PostgreSQL project, without Debian's changes: they fix
# the folder that libraries are installed in. Lists of packages of its own.
fetch_source() {
    command -v apt-get >/dev/null || skip "no apt-get to fetch the source"
    codename=$(. /etc/os-release; echo "${VERSION_CODENAME:-}")
    [ -n "$codename" ] || skip "an unknown Debian release"
    mkdir -p lists/partial archives/partial
    echo "deb-src http://deb.debian.org/debian $codename main" >sources.list
    set -- -q -o Dir::Etc::sourcelist="$PWD/sources.list" \
        -o Dir::Etc::sourceparts=- -o Dir::State::lists="$PWD/lists" \
        -o Dir::Cache="$PWD" -o Dir::Cache::archives=archives \
        -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=
    apt-get "$@" update >fetch.log 2>&1 &&
        apt-get "$@" source --download-only "postgresql-$major" >>fetch.log 2>&1 ||
        skip "the source of postgresql-$major cannot be fetched, see $PWD/fetch.log"
}

# Sets server to a folder of CACHE with pg/, an installed server built with
# configure's arguments given (CFLAGS and the like as well), and source/.
need_server() { # name, arguments of configure
    mkdir -p "$cache"
    cd "$cache"
    server=$cache/$1
    kind=$1
    shift
    [ ! -f "$server/ready" ] || return 0
    echo "Building PostgreSQL $major ($kind) in $server"
    set -- "$@" --prefix="$server/pg" --enable-debug --without-icu \
        --without-readline --without-zlib
    ls postgresql-*.orig.tar.* >/dev/null 2>&1 || fetch_source
    rm -rf "$server"
    mkdir -p "$server/source"
    tar -xf postgresql-*.orig.tar.* --strip-components=1 -C "$server/source"
    if [ ! -f "$server/source/src/backend/parser/gram.c" ]; then
        for tool in bison flex; do
            command -v $tool >/dev/null || skip "$tool is not installed"
        done
    fi
    (
        cd "$server/source"
        ./configure -q "$@"
        make -s -j2
        make -s install
        make -s -C contrib/pgcrypto install || :
        make -s -C src/test/regress
    ) >"$server/build.log" 2>&1 ||
        skip "PostgreSQL does not build here, see $server/build.log"
    touch "$server/ready"
}

# The extension, built from TREE for that server.
install_extension() { # make's arguments
    make -s -C "$tree" clean PG_CONFIG="$server/pg/bin/pg_config" with_llvm=no
    make -s -j2 -C "$tree" install PG_CONFIG="$server/pg/bin/pg_config" \
        with_llvm=no "$@"
}

# Starts a cluster in a new folder "data", removed at the end, with the
# library preloaded and the lines of standard input in its configuration;
# sets PGHOST and PGPORT. The command "postmaster", if set, runs the server.
start_cluster() {
    data=$(mktemp -d)
    trap '"$server/pg/bin/pg_ctl" -s -D "$data/db" -m immediate stop 2>/dev/null || :; rm -rf "$data"' EXIT
    "$server/pg/bin/initdb" -D "$data/db" -U postgres -A trust --no-locale -E UTF8 >/dev/null
    cat >>"$data/db/postgresql.conf"
    cat >>"$data/db/postgresql.conf" <<CONF
shared_preload_libraries = 'apikeys'
listen_addresses = ''
unix_socket_directories = '$data'
fsync = off
CONF
    if [ -n "${postmaster:-}" ]; then
        $postmaster "$server/pg/bin/postgres" -D "$data/db" >"$data/log" 2>&1 &
        n=0
        until "$server/pg/bin/pg_isready" -q -h "$data"; do
            n=$((n + 1))
            [ $n -lt 1800 ] || { cat "$data/log"; exit 1; }
            sleep 0.1
        done
    else
        "$server/pg/bin/pg_ctl" -s -w -D "$data/db" -l "$data/log" start
    fi
    export PGHOST="$data" PGPORT=5432 PGUSER=postgres
}

# Runs the extension's regression scripts (REGRESS) or isolation specs
# (ISOLATION) on servers of their own; adds to ok and not_ok, and to the file
# log.
ok=0 not_ok=0
run_scripts() { # which, names (all, if none)
    other=ISOLATION
    [ "$1" = REGRESS ] || other=REGRESS
    which=$1
    shift
    make -s --no-print-directory -C "$tree" PG_CONFIG="$server/pg/bin/pg_config" \
        with_llvm=no installcheck $other= TAP_TESTS= ${*:+"$which=$*"} \
        </dev/null >"$log.part" 2>&1 || :
    count_scripts
}

# Regression scripts on the cluster that was started.
run_pg_regress() { # names
    (
        cd "$tree"
        "$(dirname "$("$server/pg/bin/pg_config" --pgxs)")/../test/regress/pg_regress" \
            --bindir="$server/pg/bin" --inputdir=test --dbname=contrib_regression "$@"
    ) </dev/null >"$log.part" 2>&1 || :
    count_scripts
}

count_scripts() {
    ran=$(grep -cE '^(test )?[ a-z0-9_-]+ \.\.\. ok |^ok [0-9]' "$log.part" || :)
    missed=$(grep -cE '^(test )?[ a-z0-9_-]+ \.\.\. FAILED|^not ok [0-9]' "$log.part" || :)
    [ "$ran" -gt 0 ] || [ "$missed" -gt 0 ] || missed=1
    cat "$log.part" >>"$log"
    for diffs in "$tree/regression.diffs" "$tree/output_iso/regression.diffs"; do
        [ ! -f "$diffs" ] || cat "$diffs" >>"$log"
        rm -f "$diffs"
    done
    ok=$((ok + ran)) not_ok=$((not_ok + missed))
}

# The same for TAP files, by their names.
run_tap() {
    for name in "$@"; do
        (
            cd "$tree"
            export PATH="$server/pg/bin:$PATH" TESTDIR="$tree" PGPORT=65432 \
                TESTDATADIR="$tree/tmp_check" TESTLOGDIR="$tree/tmp_check/log" \
                PG_REGRESS="$(dirname "$("$server/pg/bin/pg_config" --pgxs)")/../test/regress/pg_regress"
            prove -I "$server/source/src/test/perl" -I test/t "test/t/$name.pl"
        ) </dev/null >"$log.part" 2>&1 &&
            ok=$((ok + 1)) || not_ok=$((not_ok + 1))
        cat "$log.part" >>"$log"
    done
}

# Debian chroots that have other versions of PostgreSQL; read by the scripts of
# this folder, with root set to the checkout.
#
# A chroot is made once, by debootstrap, in about a minute and 700 MB, and kept
# in /var/cache/apikeys/NN; remove that to have it made anew. Mounts and
# processes are in namespaces of their own: nothing of them is left when the
# command ends, however it ends.

# shellcheck shell=sh disable=SC2034,SC2154
cache=/var/cache/apikeys
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

die() { printf 'dev: %s\n' "$*" >&2; exit 1; }

# Sets nn, suite and chroot, for a version of PostgreSQL.
name_chroot() {
    nn=$1
    case $nn in
    15) suite=bookworm ;;
    17) suite=trixie ;;
    18) suite=sid ;;
    *) die "no Debian release is known here to have PostgreSQL $nn; 15, 17 and 18 are" ;;
    esac
    chroot=$cache/$nn
}

# Begins the script anew, with its arguments, in namespaces of its own.
enter_namespaces() {
    [ "${APIKEYS_NAMESPACE:-}" != yes ] || return 0
    [ "$(id -u)" -eq 0 ] || die "a chroot can only be made and entered by root"
    if ! command -v debootstrap >/dev/null; then
        echo "Installing what is missing, with apt-get: debootstrap"
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
            install -y --no-install-recommends debootstrap </dev/null
    fi
    mkdir -p "$cache"
    exec env APIKEYS_NAMESPACE=yes \
        unshare --mount --pid --ipc --fork --kill-child "$@"
}

# Runs a command in the chroot $1, with nothing of our environment.
inside() {
    in=$1
    shift
    chroot "$in" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@" </dev/null
}

mounts() {
    mount -t proc proc "$1/proc"
    mkdir -p "$1/dev/shm"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
}

# The headers' package is unpacked, not installed: it depends on a compiler of
# its own, of which nothing is needed here.
make_chroot() {
    new=$chroot.new
    rm -rf "$new"
    echo "Making a chroot for PostgreSQL $nn (Debian $suite) in $chroot"
    debootstrap --variant=minbase "$suite" "$new" "$mirror" \
        >"$chroot.log" 2>&1 || return 1
    mounts "$new"
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d"
    echo 'Acquire::Check-Valid-Until "false";' \
        >"$new/etc/apt/apt.conf.d/90apikeys"
    mkdir -p "$new/etc/postgresql-common"
    echo 'create_main_cluster = false' \
        >"$new/etc/postgresql-common/createcluster.conf"
    inside "$new" sh -eux -c "
        apt-get -q update
        apt-get -q install -y --no-install-recommends postgresql-$nn \
            postgresql-client-$nn libpq-dev make gcc libc6-dev \
            libipc-run-perl
        cd /tmp
        apt-get -q download postgresql-server-dev-$nn
        dpkg -x postgresql-server-dev-${nn}_*.deb /
        rm postgresql-server-dev-${nn}_*.deb
        apt-get clean" >>"$chroot.log" 2>&1 || return 1
    umount "$new/proc" "$new/dev/shm"
    mv "$new" "$chroot"
}

# Sees to it that the chroot that was named is there, and mounts what it needs.
need_chroot() {
    (
        flock 9
        [ -d "$chroot" ] || make_chroot || {
            tail -n 20 "$chroot.log" >&2
            die "the chroot cannot be made; see $chroot.log"
        }
    ) 9>"$chroot.lock"
    mounts "$chroot"
}

# Copies the sources into a new folder.
copy_sources() {
    mkdir -p "$1"
    (cd "$root" && tar -cf - --exclude='*.o' --exclude='*.so' --exclude='*.bc' \
        Makefile apikeys.control dev src sql test expected doc) |
        (cd "$1" && tar -xf -)
}

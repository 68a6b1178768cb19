#!/bin/sh
# root.sh INIT FOLDER: a Debian root file system with systemd or sysvinit, made once. It needs debootstrap and Debian's packages.
set -eu
[ ! -d "$2/$1" ] || exit 0
case $1 in
    systemd) own=systemd-sysv,dbus ;;
    sysvinit) own=sysvinit-core,initscripts,insserv,orphan-sysvinit-scripts ;;
esac
mkdir -p "$2/packages" "$2/$1.new"
own=$own,ifupdown,iproute2,kmod,libssl3,make,passwd,procps,python3-minimal
# In memory first: dpkg waits for the disk after each file.
unshare -m --propagation private sh -eu -c '
    mount -t tmpfs -o mode=755 tmpfs "$1.new"
    debootstrap --variant=minbase --cache-dir="$2" --include="$3" bookworm "$1.new" || { tail -n 20 "$1.new/debootstrap/debootstrap.log"; exit 1; }
    rm -f "$1.new"/var/cache/apt/archives/*.deb "$1.new/etc/machine-id"
    mkdir "$1.part" && cp -a "$1.new/." "$1.part"
' sh "$2/$1" "$(realpath "$2/packages")" "$own" >"$2/$1.log" 2>&1 || { tail "$2/$1.log" >&2; exit 1; }
rmdir "$2/$1.new"
mv "$2/$1.part" "$2/$1"

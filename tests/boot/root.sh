#!/bin/sh
# root.sh INIT FOLDER: a Debian root file system with systemd or sysvinit, made once.
set -eu
[ ! -d "$2/$1" ] || exit 0
case $1 in
    systemd) own=systemd-sysv,dbus ;;
    sysvinit) own=sysvinit-core,initscripts,insserv,orphan-sysvinit-scripts ;;
esac
mkdir -p "$2"
rm -rf "$2/$1.new"
debootstrap --variant=minbase --include="$own",ifupdown,iproute2,kmod,libssl3,make,nftables,passwd,procps,python3-minimal \
    bookworm "$2/$1.new" >"$2/$1.log" 2>&1 || { tail "$2/$1.log" >&2; exit 1; }
rm -f "$2/$1.new"/var/cache/apt/archives/*.deb "$2/$1.new/etc/machine-id"
mv "$2/$1.new" "$2/$1"

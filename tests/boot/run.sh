#!/bin/bash
# run.sh [--short] [systemd|sysvinit]...: three machines, each booted under a real init, installed as the README says, and
# operated as the manual says while a client asks the virtual address every 10 ms. Prints what each row lost; one of a
# planned act must be 0. Needs root. All of it is in namespaces and in $TARGET/boot, and is taken away at the end.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
[ "$(id -u)" = 0 ] || { echo "boot: needs root" >&2; exit 2; }
TARGET=$(realpath "${CARGO_TARGET_DIR:-target}")
SHORT=
[ "${1-}" != --short ] || { SHORT=yes; shift; }
INITS=${*:-systemd sysvinit}
# Unpacked by `make boot-deps`; its library too, where this machine has no systemd.
PATH=$TARGET/boot/nspawn/usr/bin:$PATH
export LD_LIBRARY_PATH="$TARGET/boot/nspawn/usr/lib/$(uname -m)-linux-gnu/systemd"
MAKE_INSTALL="make -s -C /src install-built CARGO_TARGET_DIR=/built PROFILE=${PROFILE:-release}"
VIP=10.77.0.10
LAN=standin-boot-$$
WORK=$TARGET/boot/run-$$
FAILED=0
declare -A SPAWN CONSOLE
CLIENT=

note() { printf '      %s\n' "$*"; }
wrong() { FAILED=1; printf 'WRONG %s\n' "$*"; }
within() { # within SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}

# --- machines -------------------------------------------------------------------------------------------------------

# Pid 1 of machine I, as the host counts.
init_of() { cat "/proc/${SPAWN[$1]}/task/${SPAWN[$1]}/children" 2>/dev/null | tr -d ' '; }
on() { # on I COMMAND...
    local i=$1 init; shift
    init=$(init_of "$i"); [ -n "$init" ] || return 1
    nsenter -t "$init" -a -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb "$@" </dev/null
}
booted() {
    case $INIT in
        systemd) on "$1" systemctl is-active -q multi-user.target ;;
        sysvinit) [ "$(on "$1" runlevel 2>/dev/null)" = "N 2" ] && ! on "$1" pgrep -x rc >/dev/null ;;
    esac 2>/dev/null
}
power_on() {
    # A /run of its own: on a disk, nspawn would refuse to boot a machine again.
    # shellcheck disable=SC2016
    nsenter --net="/run/netns/$LAN" unshare -m sh -c 'mount -t tmpfs tmpfs /run && exec "$0" "$@"' systemd-nspawn --quiet --boot --register=no --keep-unit --machine="boot-$$-m$1" --hostname="m$1" \
        --directory="$WORK/m$1" --network-bridge=br0 --bind-ro="$PWD:/src:norbind" --bind-ro="$TARGET:/built:norbind" --link-journal=no --resolv-conf=off --timezone=off \
        --capability=CAP_IPC_LOCK,CAP_BPF,CAP_PERFMON --system-call-filter="bpf @memlock" \
        >>"$WORK/m$1.console" 2>&1 </dev/null &
    SPAWN[$1]=$!
    within 60 booted "$1" || { wrong "m$1 does not boot"; tail -20 "$WORK/m$1.console"; return 1; }
}
# As when the plug is pulled: nothing more leaves, then nothing more runs.
power_off() {
    local port
    for port in $(ip -n "$LAN" -o link show type veth | sed -n 's/^[0-9]*: \([^@:]*\).*/\1/p' | grep -e "-m$1\$"); do
        ip -n "$LAN" link del "$port"
    done
    kill -KILL "$(init_of "$1")" 2>/dev/null
    wait "${SPAWN[$1]}" 2>/dev/null
    unset "SPAWN[$1]"
}
has_left() { ! kill -0 "${SPAWN[$1]}" 2>/dev/null; }
# A machine of its own, new: a copy of the root, its address, the service behind the virtual address.
make_machine() {
    local root=$WORK/m$1
    rm -rf "$root"; cp -a --reflink=auto "$TARGET/boot/$INIT" "$root"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    echo "m$1" >"$root/etc/hostname"
    printf 'auto lo\niface lo inet loopback\nauto host0\niface host0 inet static\n\taddress 10.77.0.1%s/24\n' "$1" >"$root/etc/network/interfaces"
    cp tests/boot/udp.py "$root/usr/local/sbin"
    case $INIT in
        systemd)
            printf '%s\n' '[Unit]' 'Before=standin.service' '[Service]' "ExecStart=/usr/bin/python3 /usr/local/sbin/udp.py serve m$1" \
                '[Install]' 'WantedBy=multi-user.target' >"$root/etc/systemd/system/echo.service"
            chroot "$root" systemctl -q enable echo.service ;;
        sysvinit)
            { echo '#!/bin/sh'
              printf '# %s\n' '## BEGIN INIT INFO' 'Provides: echo' 'Required-Start: $network $remote_fs' 'Required-Stop: $network $remote_fs' \
                  'X-Start-Before: standin' 'X-Stop-After: standin' 'Default-Start: 2 3 4 5' 'Default-Stop: 0 1 6' '## END INIT INFO' | sed 's/^# ##/###/'
              printf 'case $1 in\nstart) start-stop-daemon -S -b -m -p /run/echo.pid -x /usr/bin/python3 -- /usr/local/sbin/udp.py serve m%s ;;\nstop) start-stop-daemon -K -p /run/echo.pid ;;\nesac\n' "$1"
            } >"$root/etc/init.d/echo"
            chmod 755 "$root/etc/init.d/echo"
            chroot "$root" update-rc.d echo defaults >/dev/null ;;
    esac
}
config() {
    local j
    printf '[cluster]\nname = "boot"\n'
    for j in 1 2 3; do printf '[[server]]\nname = "m%s"\naddress = ["10.77.0.1%s"]\n' $j $j; done
    # The clock is the host's: not ours to steer.
    printf '[[virtual_server]]\nname = "web"\ninterface = "host0"\naddress = ["%s/24"]\n[time]\ndiscipline = "observe"\n' $VIP
}

# --- what the README says -------------------------------------------------------------------------------------------

install_standin() {
    on "$1" $MAKE_INSTALL >"$WORK/m$1.install" 2>&1 ||
        { wrong "m$1: make install"; cat "$WORK/m$1.install"; return 1; }
    config >"$WORK/m$1/etc/standin/standin.toml"
    if [ -e "$WORK/key" ]; then
        install -m 600 "$WORK/key" "$WORK/m$1/etc/standin/cluster.key"
    else
        on "$1" standin keygen /etc/standin/cluster.key >/dev/null && cp "$WORK/m$1/etc/standin/cluster.key" "$WORK/key"
    fi
    # On a new cluster this says that only `standin init` is missing.
    on "$1" standin check >"$WORK/m$1.check" 2>&1
    ! grep WRONG "$WORK/m$1.check" | grep -v 'on a new cluster run `standin init`' || wrong "m$1: standin check"
}
first_start() {
    case $INIT in
        systemd) on "$1" systemctl -q enable --now standin ;;
        sysvinit) on "$1" /etc/init.d/standin start >/dev/null && on "$1" update-rc.d standin defaults >/dev/null ;;
    esac || wrong "m$1: standin does not start"
}
restart_standin() {
    case $INIT in systemd) on "$1" systemctl restart standin ;; sysvinit) on "$1" /etc/init.d/standin restart >/dev/null ;; esac
}
kill_main() {
    case $INIT in
        systemd) on "$1" systemctl kill --kill-whom=main --signal=KILL standin ;;
        sysvinit) on "$1" sh -c 'kill -KILL "$(cat /run/standin/standin.pid)"' && on "$1" standin run --daemon ;;
    esac
}

# --- rows -----------------------------------------------------------------------------------------------------------

holds() { on "$1" ip -o addr 2>/dev/null | grep " $VIP/" >/dev/null; }
master() { local i; for i in "${!SPAWN[@]}"; do ! holds "$i" || { echo "$i"; return; }; done; return 1; }
is_master() { master >/dev/null; }
slave() { local i m; m=$(master); for i in "${!SPAWN[@]}"; do [ "$i" = "$m" ] || { echo "$i"; return; }; done; }
# One is master, and every server hears both others.
all_well() {
    local i
    is_master || return 1
    for i in 1 2 3; do
        on $i standin status --json 2>/dev/null | python3 -c '
import json, sys
d = json.load(sys.stdin)
sys.exit([s["state"] for s in d["servers"]] != ["alive"] * 3 or d["role"] == "none")' 2>/dev/null || return 1
    done
}
row() { # row NAME planned|LIMIT COMMAND...: loses nothing, or not more than LIMIT ms
    local name=$1 limit=$2 asked lost gap before ok=yes; shift 2
    within 60 all_well || { wrong "$INIT: $name: the cluster is not well before"; on "$(slave)" standin status; return; }
    before=$(master)
    nsenter --net="/run/netns/$LAN" python3 tests/boot/udp.py ask $VIP >"$WORK/asked" &
    CLIENT=$!
    sleep 1
    "$@" || ok=no
    within 60 all_well || { wrong "$INIT: $name: the cluster is not well afterwards"; on "$(slave)" standin status; }
    sleep 1
    kill -TERM $CLIENT; wait $CLIENT; CLIENT=
    read -r asked lost gap <"$WORK/asked"
    printf '%-8s  %-42s  asked %5s  lost %4s  gap %5s ms  m%s -> m%s\n' "$INIT" "$name" "$asked" "$lost" "$gap" "$before" "$(master)"
    [ $ok = yes ] || wrong "$INIT: $name: failed"
    if [ "$limit" = planned ]; then [ "$lost" = 0 ]; else [ "$gap" -le "$limit" ]; fi || wrong "$INIT: $name: lost $lost requests, $gap ms"
}

# Owner and mode of every socket, and who runs.
sockets() { on "$1" sh -c 'cd /run/standin && stat -c "%n %U:%G %a" . *.sock 2>/dev/null'; }
roles() { on "$1" pgrep -x 'hbd|listend|doctord|electd'; }
goes_on() { # goes_on COMMAND: the sockets keep owner and mode
    local i before; i=$(master); before=$(sockets "$i")
    "$@" "$i" || return
    within 30 all_well || return
    [ "$before" = "$(sockets "$i")" ] || { wrong "sockets of m$i: before"; echo "$before"; sockets "$i"; }
}
main_dies() {
    local before; before=$(roles "$1")
    kill_main "$1" || return
    within 20 on "$1" standin status >/dev/null || return
    sleep 2
    [ "$before" = "$(roles "$1")" ] || { wrong "roles of m$1 did not go on"; return 1; }
}
restart_roles() {
    local i role; i=$(master)
    for role in hbd listend doctord electd; do
        on "$i" /etc/init.d/$role restart >"$WORK/said" 2>&1 || { cat "$WORK/said"; return 1; }
        sleep 0.5
    done
}
upgrade() {
    local i
    for i in 1 2 3; do
        on $i $MAKE_INSTALL >"$WORK/said" 2>&1 &&
            on $i standin restart >>"$WORK/said" 2>&1 && kill_main $i >>"$WORK/said" 2>&1 || { cat "$WORK/said"; return 1; }
        within 60 all_well || return
    done
}
on_each() { # on_each COMMANDS, then a reload
    local i
    for i in 1 2 3; do on $i sh -ec "$1; standin reload" >"$WORK/said" 2>&1 || { cat "$WORK/said"; return 1; }; done
    within 60 all_well
}
rotate() { # docs/OPERATIONS.md
    local i
    on 1 standin keygen /root/new.key >/dev/null || return
    for i in 2 3; do install -m 600 "$WORK/m1/root/new.key" "$WORK/m$i/root/new.key"; done
    on_each 'cat /root/new.key >>/etc/standin/cluster.key' &&
        on_each "cat /root/new.key >/root/both && grep -v '^#' /etc/standin/cluster.key | head -n 1 >>/root/both
            install -m 600 /root/both /etc/standin/cluster.key" &&
        on_each 'install -m 600 /root/new.key /etc/standin/cluster.key' && cp "$WORK/m1/root/new.key" "$WORK/key"
}
maintain() {
    local i; i=$(master)
    on "$i" standin maintenance on >/dev/null && within 20 moved "$i" && goes_down "$i" reboot && power_on "$i" &&
        within 60 in_maintenance "$i" && on "$i" standin maintenance off >/dev/null
}
in_maintenance() { on "$1" standin status 2>/dev/null | grep -q ', in maintenance for '; }
hang_role() {
    local i old; i=$(master); old=$(on "$i" pgrep -x doctord)
    on "$i" kill -STOP "$old"
    replaced() { local now; now=$(on "$1" pgrep -x doctord) && [ "$now" != "$2" ]; }
    within 30 replaced "$i" "$old"
}
clean_run() { # as a cleaner of /run does that knows no sockets
    local i before; i=$(master); before=$(sockets "$i")
    on "$i" sh -c 'rm -f /run/standin/*.sock'
    back() { [ "$(sockets "$1")" = "$before" ]; }
    within 30 back "$i"
}
moved() { local i; i=$(master) && [ "$i" != "$1" ]; }
goes_down() { # goes_down I reboot|halt
    on "$1" "$2" >/dev/null 2>&1; within 60 has_left "$1" || { wrong "m$1 does not $2"; tail -20 "$WORK/m$1.console"; power_off "$1"; return; }
    unset "SPAWN[$1]"
}
reboot_each() {
    local i
    # nspawn ends at a reboot, and leaves it to whoever started it to start it again.
    for i in 1 2 3; do goes_down $i reboot && power_on $i && within 60 all_well || return; done
}
halt_master() {
    local i; i=$(master)
    goes_down "$i" poweroff
    within 20 is_master && power_on "$i"
}
lose_master() { local i; i=$(master); power_off "$i"; within 20 is_master; sleep 1; power_on "$i"; }
reinstall() {
    local i; i=$(slave)
    power_off "$i"; make_machine "$i"; power_on "$i" && install_standin "$i" && first_start "$i"
}
bad_config() {
    local i said=; i=$(master)
    echo 'heartbeat = 5 apples' >>"$WORK/m$i/etc/standin/standin.toml"
    case $INIT in
        systemd) ! said=$(on "$i" systemctl reload standin 2>&1) ;;
        sysvinit) ! said=$(on "$i" /etc/init.d/standin restart 2>&1) ;;
    esac || { wrong "a wrong configuration was taken: $said"; return 1; }
    on "$i" sh -c 'kill -KILL "$(pgrep -x doctord)"'
    sleep 2
    roles "$i" | wc -l | grep -qx 4 || { wrong "a role does not start with the last good configuration"; return 1; }
    config >"$WORK/m$i/etc/standin/standin.toml"
}

# --- the run --------------------------------------------------------------------------------------------------------

down() {
    local i
    [ -z "$CLIENT" ] || kill -KILL "$CLIENT" 2>/dev/null
    for i in "${!SPAWN[@]}"; do power_off "$i"; done
    ip netns del "$LAN" 2>/dev/null
    [ -n "${KEEP-}" ] && note "kept: $WORK" || rm -rf "$WORK"
}
trap down EXIT
trap 'exit 1' INT TERM HUP

mkdir -p "$WORK"
# A bridge without an address of its own takes that of a port: the client would get another when a machine goes.
ip netns add "$LAN" && ip -n "$LAN" link set lo up &&
    ip -n "$LAN" link add br0 address 02:00:5e:00:53:64 type bridge stp_state 0 forward_delay 0 mcast_snooping 0 && ip -n "$LAN" link set br0 up &&
    ip -n "$LAN" addr add 10.77.0.100/24 dev br0 || exit
for INIT in $INITS; do
    sh tests/boot/root.sh "$INIT" "$TARGET/boot" || exit
    rm -f "$WORK/key"
    for i in 1 2 3; do make_machine $i && power_on $i && install_standin $i || exit 1; done
    for i in 1 2 3; do on $i standin init >/dev/null || wrong "m$i: standin init"; done
    for i in 1 2 3; do first_start $i; done
    row "main daemon killed" planned goes_on main_dies
    row "init.d/ROLE restart, of the master's roles" planned restart_roles
    row "power loss of the master" 2000 lose_master
    for i in 1 2 3; do on $i standin status --check || wrong "m$i: not all is well"; done
    if [ -z "$SHORT" ]; then
        row "a hung role of the master" 1000 hang_role
        row "sockets removed from the master's run-dir" planned clean_run
        row "maintenance of the master, over a reboot" planned maintain
        row "restart of the master" planned goes_on restart_standin
        row "bad configuration, and a role that dies" planned bad_config
        row "upgrade" planned upgrade
        row "rotation of the key" planned rotate
        row "reboot of each server" planned reboot_each
        row "halt of the master" planned halt_master
        row "re-install of a slave" planned reinstall
    fi
    for i in "${!SPAWN[@]}"; do power_off "$i"; done
done
[ $FAILED = 0 ] && echo "boot: fine"
exit $FAILED

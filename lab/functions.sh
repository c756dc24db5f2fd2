# shellcheck shell=bash
# What the nodes of the lab do alike. The start-up script of each kind of node sources this file.

# Brings an interface up as the far end of a balancer that redirects frames into a veth pair.
prepare_interface() {
    local dev=$1
    # GRO is switched on while the interface is up: that is when the kernel marks the other end of the pair as one
    # that frames may be redirected to. Switched on before, it takes effect only if the other end comes up later,
    # and native XDP silently loses every frame.
    ip link set dev "$dev" up
    # A checksum that is left to the device is never computed, because no device follows. Segmentation offload
    # would hand the balancer packets of up to 64 KB.
    ethtool -K "$dev" gro on tx off tso off gso off >/dev/null
}

# Sets what a kernel or a distribution may have set otherwise. Call it before adding addresses.
prepare_kernel() {
    local directory
    for directory in /proc/sys/net/ipv4/conf/*; do
        # An answer leaves by another route than a strict reverse path filter expects.
        echo 0 >"$directory/rp_filter"
    done
    for directory in /proc/sys/net/ipv6/conf/*; do
        # Container engines switch IPv6 off.
        echo 0 >"$directory/disable_ipv6"
        # All four concentrators own the same address, which duplicate detection would take from them.
        echo 0 >"$directory/accept_dad"
        echo 0 >"$directory/accept_ra"
    done
    ip link set dev lo up
}

# Prints the way to inner addresses, which depends on who carries ESP; the argument is the next hop outside.
inner_route() {
    local neighbour=$1
    if [[ $LB_LAB_ESP == kernel ]]; then
        # The kernel's policies catch the packet on its way out.
        echo "via $neighbour dev eth1"
    else
        echo "dev ipsec0"
    fi
}

# Starts strongSwan and loads the node's connections. The arguments are the routes to what lies behind the tunnels, as
# `ip -batch` takes them: they go with strongSwan's interface, and come again with it.
start_strongswan() {
    local directory
    printf '%s\n' "$@" >/run/lab/inner-routes
    # strongSwan complains of a directory that its settings include and that has no file.
    for directory in /run/lab/strongswan.d /run/lab/swanctl.d; do
        mkdir -p "$directory"
        : >"$directory/tried.conf"
    done
    run_strongswan
}

# Whether a process is a charon that runs. One that has ended may stay as a zombie, whose parent takes no notice: that
# has no program any more.
is_charon() {
    [[ $(readlink "/proc/$1/exe") == */charon ]]
}

# Starts strongSwan anew, as after a change of its settings. Its tunnels are gone then, and their peers have been told.
restart_strongswan() {
    local pid tries=0
    if pid=$(cat /run/charon.pid 2>/dev/null) && is_charon "$pid"; then
        kill "$pid"
        while is_charon "$pid"; do
            tries=$((tries + 1))
            [[ $tries -lt 300 ]] || { echo "charon does not end" >&2; return 1; }
            sleep 0.1
        done
    fi
    # One that was killed has left it, and another process may have the number now.
    rm -f /run/charon.pid
    run_strongswan
}

run_strongswan() {
    local charon='' candidate
    for candidate in /usr/lib/ipsec/charon /usr/libexec/ipsec/charon /usr/lib/strongswan/charon; do
        [[ -x $candidate ]] && charon=$candidate && break
    done
    [[ -n $charon ]] || { echo "strongSwan's charon is not installed" >&2; return 1; }
    setsid "$charon" </dev/null >/dev/null 2>&1 &

    # A machine that is emulated takes its time, hence the generous bound.
    local tries=0
    until timeout 10 swanctl --stats >/dev/null 2>&1; do
        tries=$((tries + 1))
        [[ $tries -lt 300 ]] || { echo "charon does not answer; its log is /run/charon.log" >&2; return 1; }
        kill -0 $! 2>/dev/null || { echo "charon ended; its log is /run/charon.log" >&2; return 1; }
        sleep 0.1
    done
    load_connections
    if [[ $LB_LAB_ESP == userspace && ! -e /proc/sys/net/ipv4/conf/ipsec0 ]]; then
        echo "charon made no interface ipsec0: is its plugin kernel-libipsec installed, and /dev/net/tun there?" >&2
        return 1
    fi
    ip -batch /run/lab/inner-routes
}

# Loads the node's connections and credentials, as after a change of them.
load_connections() {
    local output
    # A file that cannot be read counts as an empty one.
    if ! output=$(timeout 30 swanctl --load-all --noprompt 2>&1) || [[ $output == *"invalid config file"* ]]; then
        grep -E 'error|failed|invalid' <<<"$output" >&2 || echo "$output" >&2
        return 1
    fi
}

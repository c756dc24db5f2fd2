# shellcheck shell=bash
# What the nodes with FRR do alike. Their start-up scripts source this file behind functions.sh.

# Starts FRR's zebra and bgpd, and gives them the node's configuration.
start_frr() {
    local daemon output
    mkdir -p /run/frr
    chown frr:frr /run/frr
    for daemon in zebra bgpd; do
        [[ -x /usr/lib/frr/$daemon ]] || { echo "FRR's $daemon is not installed: it is in the package frr" >&2; return 1; }
        "/usr/lib/frr/$daemon" --daemon --config_file /dev/null --pid_file "/run/frr/$daemon.pid" \
            --vty_socket /run/frr --log file:/run/frr/frr.log 2>/dev/null
    done
    # It knows which line is for which daemon.
    output=$(vtysh --vty_socket /run/frr --inputfile "/run/lab/$LB_LAB_FRR.conf" 2>&1) || { echo "$output" >&2; return 1; }
}

# Makes a kernel leave out next hops whose link is down, and spread flows by address and port.
prepare_multipath() {
    local family
    for family in ipv4 ipv6; do
        echo 1 >"/proc/sys/net/$family/conf/all/ignore_routes_with_linkdown"
        echo 1 >"/proc/sys/net/$family/fib_multipath_hash_policy"
    done
}

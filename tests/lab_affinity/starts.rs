//! Tunnels whose beginning is more than four packets: cookies, and certificates that no packet has room for.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::namespace::run;
use crate::lab::{Lab, Tunnel, await_that, spread};
use crate::wire::Wire;

/// Every start is asked for a cookie, so all of them come twice, with the same SPI and never a responder's.
#[test]
fn root_lab_starts_with_cookies_reach_the_same_backend_again() {
    let lab = Lab::up(12, "");
    lab.configure("strongswan", &lab.names("TEIP"), "charon { cookie_threshold = 1 }");
    let wire = Wire::tap(&lab);
    // While nothing gets through to port 4500, starts remain half open: that is when a backend wants cookies.
    lab.node("NAT1").sh("nft 'add chain ip lab hold { type filter hook forward priority 0; }'");
    lab.node("NAT1").sh("nft add rule ip lab hold udp dport 4500 drop");
    std::thread::scope(|scope| {
        let up = scope.spawn(|| lab.script(&["tunnels", "up", "--at-once"]));
        // One start makes its backend ask the next ones.
        await_that("cookies are asked for", || wire.seen().cookies >= 2);
        lab.node("NAT1").sh("nft delete chain ip lab hold");
        up.join().expect("the tunnels come up");
    });
    let tunnels = lab.tunnels();
    lab.script(&["tunnels", "ping", "--at-once"]);
    assert_eq!(spread(&tunnels), [3, 3, 3, 3], "{tunnels:?}");
    lab.assert_nothing_dropped();
    crate::assert_listed(&lab, &tunnels);
    let seen = wire.end();
    seen.assert_whole();
    crate::assert_seen_at_home(&tunnels, &seen);
}

/// Certificates for the clients and the backends, each with a chain of three; no packet holds such a chain.
struct Certificates {
    folder: PathBuf,
}

/// A shell script that makes the certificates in the folder it is run in. All clients have one key: it is the size of
/// their messages that matters here.
const MAKE_CERTIFICATES: &str = r#"
    key() { pki --gen --type rsa --size 3072 >"$1.key"; }
    for name in root between below client backend; do key $name & done
    wait
    ca() { pki --issue --ca --in "$1.key" --type priv --cacert "$2.cert" --cakey "$2.key" --dn "CN=$1" >"$1.cert"; }
    pki --self --ca --in root.key --type rsa --dn CN=root >root.cert
    ca between root
    ca below between
    leaf() { pki --issue --in "$1.key" --type priv --cacert below.cert --cakey below.key --dn "CN=$2" --san "$2" >"$2.cert"; }
    leaf backend vpn-concentrator
    for n in 01 02 03 04; do leaf client tun$n; done
"#;

impl Certificates {
    #[track_caller]
    fn make() -> Self {
        let folder = std::env::temp_dir().join(format!("lb-certificates-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder can be made");
        let made = Self { folder };
        run(Command::new("sh").args(["-ec", MAKE_CERTIFICATES]).current_dir(&made.folder));
        made
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    /// Gives a node its key. strongSwan's `swanctl` looks for keys in one folder only.
    #[track_caller]
    fn install_key(&self, lab: &Lab, node: &str, key: &str) {
        lab.node(node).sh(&format!(
            "mkdir /run/lab/private; cp {} /run/lab/private; mount --bind /run/lab/private /etc/swanctl/private",
            self.path(key)
        ));
    }

    /// The settings that make a node know the chain.
    fn authorities(&self) -> String {
        let each = ["root", "between", "below"]
            .map(|name| format!("{name} {{ cacert = {} }}\n", self.path(&format!("{name}.cert"))));
        format!("authorities {{ {} }}\n", each.concat())
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An IKE_AUTH message that is too large for one packet is sent in IP fragments, of which only the first says whose it
/// is, or in IKE fragments (RFC 7383).
#[test]
fn root_lab_large_certificates_arrive_whole_in_both_kinds_of_fragments() {
    let certificates = Certificates::make();
    let lab = Lab::up(4, "");
    let plugins = ["x509", "pem", "pubkey", "pkcs1"].map(|plugin| format!("{plugin} {{ load = yes }}\n"));
    let plugins = format!("charon {{ plugins {{ {} }} }}", plugins.concat());
    for node in lab.names("CL").into_iter().chain(lab.names("TEIP")) {
        let key = if node.starts_with("CL") { "client.key" } else { "backend.key" };
        certificates.install_key(&lab, node, key);
    }
    lab.configure("strongswan", &[lab.names("CL"), lab.names("TEIP")].concat(), &plugins);
    let settings = |connection: &str, local: &str, certificate: &str, fragmentation: &str| {
        format!(
            "connections {{ {connection} {{
                fragmentation = {fragmentation}
                send_cert = always
                local {{ auth = pubkey\n id = {local}\n certs = {} }}
                remote {{ auth = pubkey }}
            }} }}\n{}",
            certificates.path(certificate),
            certificates.authorities()
        )
    };
    let at_backends = settings("vpn-concentrator", "vpn-concentrator", "vpn-concentrator.cert", "yes");
    lab.configure("swanctl", &lab.names("TEIP"), &at_backends);
    for (number, fragmentation) in [("01", "no"), ("02", "no"), ("03", "yes"), ("04", "yes")] {
        let name = format!("tun{number}");
        let settings = settings(&name, &name, &format!("{name}.cert"), fragmentation);
        lab.configure("swanctl", &[&format!("CL{number}")], &settings);
    }

    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    lab.script(&["tunnels", "ping", "--at-once"]);
    assert_eq!(spread(&tunnels), [1, 1, 1, 1], "{tunnels:?}");
    lab.assert_nothing_dropped();
    crate::assert_listed(&lab, &tunnels);
    let seen = wire.end();
    seen.assert_whole();
    crate::assert_seen_at_home(&tunnels, &seen);
    let (ip, ike): (Vec<&Tunnel>, Vec<&Tunnel>) = tunnels.iter().partition(|tunnel| *tunnel.name < *"tun03");
    let backends = |tunnels: &[&Tunnel]| tunnels.iter().map(|tunnel| tunnel.backend).collect::<Vec<_>>();
    let mut fragmented: Vec<usize> =
        seen.fragments.values().flat_map(|flow| flow.at.iter().copied()).collect();
    fragmented.sort_unstable();
    fragmented.dedup();
    let mut expected = backends(&ip);
    expected.sort_unstable();
    assert_eq!(fragmented, expected, "fragments of IP: {:?}", seen.fragments);
    assert!(seen.ike_fragments >= 2 * ike.len() as u64, "{} fragments of IKE", seen.ike_fragments);
}

/// A NAT may give one port to two clients, if they speak to different ports: here to one that begins on port 500, and to
/// another whose tunnel is on port 4500 already. They have nothing to do with each other.
#[test]
fn root_lab_one_port_of_a_nat_for_two_clients() {
    let lab = Lab::up(2, "");
    let wire = Wire::tap(&lab);
    let router = lab.node("NAT1");
    router.sh("nft insert rule ip lab hide ip saddr 10.77.0.1 udp sport 4500 snat to 192.0.0.1:20000
         nft insert rule ip lab hide ip saddr 10.77.0.2 udp sport 500 snat to 192.0.0.1:20000
         nft 'add chain ip lab hold { type filter hook forward priority 0; }'
         nft add rule ip lab hold ip saddr 10.77.0.2 udp dport 4500 drop");
    std::thread::scope(|scope| {
        // The second client begins, and is held before it proves that it hears its backend.
        let second = scope.spawn(|| lab.node("CL02").sh("swanctl --initiate --child tun02"));
        await_that("the second client has begun", || !wire.seen().ike.is_empty());
        lab.node("CL01").sh("swanctl --initiate --child tun01");
        router.sh("nft delete chain ip lab hold");
        second.join().expect("the second tunnel comes up");
    });
    let tunnels = lab.tunnels();
    assert_eq!(tunnels[0].endpoint, "192.0.0.1:20000");
    assert_ne!(tunnels[0].backend, tunnels[1].backend, "{tunnels:?}");
    lab.script(&["tunnels", "ping"]);
    crate::assert_listed(&lab, &tunnels);
    let seen = wire.end();
    seen.assert_whole();
    crate::assert_seen_at_home(&tunnels, &seen);
}

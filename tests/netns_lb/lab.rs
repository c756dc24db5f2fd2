//! Balancers, clients and backends in namespaces, and the binary run on them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

pub use crate::common::command::{Ended, LB, PATIENCE, Running, eventually};
pub use crate::common::folder::TemporaryFolder;
use crate::common::folder::listing;
use crate::common::kernel::Footprint;
use crate::common::namespace::Namespace;
pub use crate::common::namespace::batch;
use crate::common::packet;

/// A balancer's namespace, a pin root, and the binary run on both. Everything goes when this is dropped, also by a
/// test that fails.
pub struct Lab {
    pub root: PathBuf,
    /// Of each attach: no other test's is the same, so that the kernel's objects tell whose they are.
    pub max_sessions: u32,
    pub balancer: Namespace,
}

/// How many sessions a bucket of the session table stands for (`bpf/include/session.h`: four slots to a session,
/// sixteen to a bucket).
const SESSIONS_PER_BUCKET: u32 = 4;

impl Lab {
    /// A balancer without interfaces. Its own stack keeps silent about IPv6.
    #[track_caller]
    pub fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let balancer = Namespace::new("lb-t");
        for scope in ["all", "default"] {
            balancer.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        let buckets = 64 + process::id() % 512 * 64 + count % 64;
        Self {
            root: format!("/sys/fs/bpf/lb-test-{}-{count}", process::id()).into(),
            max_sessions: buckets * SESSIONS_PER_BUCKET,
            balancer,
        }
    }

    /// A balancer with `eth1` to `eth<count>`, whose far ends `far1` and so on are in the same namespace: enough for
    /// all that needs no packets.
    #[track_caller]
    pub fn with_ports(count: usize) -> Self {
        let lab = Self::empty();
        let lines = (1..=count).map(|n| {
            format!("link add eth{n} type veth peer name far{n}\nlink set eth{n} up\nlink set far{n} up\n")
        });
        batch(&lab.balancer, &lines.collect::<String>());
        lab
    }

    /// The binary, told to use this pin root, with more arguments separated by spaces.
    pub fn command(&self, arguments: &str) -> Command {
        self.command_by(&[], arguments)
    }

    /// The same, run by the program that the words of `before` start.
    pub fn command_by(&self, before: &[&str], arguments: &str) -> Command {
        let words = [before, &[LB]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(arguments.split_whitespace()).arg("--pin-root").arg(&self.root);
        command
    }

    /// Runs the binary to its end.
    #[track_caller]
    pub fn lb(&self, arguments: &str) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    /// The arguments of an attach in this balancer's namespace.
    pub fn attach_arguments(&self, arguments: &str) -> String {
        let (sessions, netns) = (self.max_sessions, self.balancer.name());
        format!("attach --max-sessions {sessions} --netns {netns} {arguments}")
    }

    /// Runs an attach in this balancer's namespace to its end.
    #[track_caller]
    pub fn attach(&self, arguments: &str) -> Ended {
        self.lb(&self.attach_arguments(arguments))
    }

    /// What of the instances of this balancer is in the kernel.
    pub fn footprint(&self) -> Footprint {
        let buckets = self.max_sessions / SESSIONS_PER_BUCKET;
        Footprint::with_maps(|map| map.name == "sessions" && map.max_entries == buckets)
    }

    /// The status of the one instance that is attached.
    #[track_caller]
    pub fn status(&self) -> Value {
        let all = self.lb("status --json").json();
        assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
        all[0].clone()
    }

    /// The state in that status.
    #[track_caller]
    pub fn state(&self) -> String {
        self.status()["state"].as_str().expect("a state is a text").to_owned()
    }

    /// The ids of the programs in that status, in the order of the interfaces.
    #[track_caller]
    pub fn program_ids(&self) -> Vec<u64> {
        let status = self.status();
        let interfaces = status["interfaces"].as_array().expect("there are interfaces");
        interfaces.iter().map(|interface| interface["program_id"].as_u64().expect("it is there")).collect()
    }

    /// How many packets have ended in a verdict.
    #[track_caller]
    pub fn verdict(&self, verdict: &str) -> u64 {
        let stats = self.lb("stats --json").json();
        stats["verdicts"][verdict]["packets"].as_u64().unwrap_or_else(|| panic!("no {verdict}: {stats}"))
    }

    /// One column of `lb backend list`.
    #[track_caller]
    pub fn backends(&self, key: &str) -> Vec<Value> {
        let list = self.lb("backend list --json").json();
        list.as_array().expect("a list").iter().map(|backend| backend[key].clone()).collect()
    }

    /// The sessions, as `lb session list` has them.
    #[track_caller]
    pub fn sessions(&self) -> Vec<Value> {
        self.lb("session list --json").json().as_array().expect("a list").clone()
    }

    /// The kernel's and the file system's word that nothing is attached, pinned or left.
    #[track_caller]
    pub fn assert_no_trace(&self) {
        assert!(!self.root.exists(), "{} is left: {:?}", self.root.display(), listing(&self.root));
        self.assert_xdp_on(&[]);
        let gone = eventually(Duration::from_secs(10), || self.footprint() == Footprint::default());
        assert!(gone, "the kernel still has {:?}", self.footprint());
    }

    /// The interfaces of the balancer that have a program, as `ip link show` says.
    #[track_caller]
    fn xdp_interfaces(&self) -> Vec<String> {
        let links: Value =
            serde_json::from_str(&self.balancer.ip(&["-json", "link", "show"])).expect("ip prints JSON");
        let links = links.as_array().expect("a list");
        let name = |link: &Value| link["ifname"].as_str().map(ToOwned::to_owned);
        let mut names: Vec<String> =
            links.iter().filter(|link| link.get("xdp").is_some()).filter_map(name).collect();
        names.sort();
        names
    }

    /// Waits until these interfaces of the balancer have a program, and no others. A link that a process has let go of
    /// may last a moment longer, in a child that another thread of it has forked.
    #[track_caller]
    pub fn assert_xdp_on(&self, wanted: &[&str]) {
        let done = eventually(PATIENCE, || self.xdp_interfaces() == wanted);
        assert!(done, "programs are on {:?}, not on {wanted:?}", self.xdp_interfaces());
    }

    /// The folder of the instance named `default`.
    pub fn instance(&self) -> PathBuf {
        self.root.join("lb/default")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command("detach --all --quiet").stdin(Stdio::null()).stderr(Stdio::null()).status();
        // What a test has put there itself. Removing the pin of a link detaches it.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Which version of IP a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address that all backends own.
    pub fn vip(self) -> IpAddr {
        match self {
            Self::V4 => packet::VIP4.into(),
            Self::V6 => packet::VIP6.into(),
        }
    }

    /// Client number `number`, of 1 to 10; 0 is the one on the network of the VIP.
    pub fn client(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, number, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 1).into(),
        }
    }
}

/// A lab with one client, which has many addresses, behind `eth1`, and four backends behind `eth2` to `eth5` that own
/// the same address: the topology of scripts/lab.
pub struct Network {
    pub lab: Lab,
    pub client: Namespace,
    pub backends: Vec<Namespace>,
}

/// How many backends a network has.
pub const BACKENDS: usize = 4;

impl Network {
    #[track_caller]
    pub fn new() -> Self {
        let network = Self {
            lab: Lab::empty(),
            client: Namespace::new("lb-c"),
            backends: (0..BACKENDS).map(|_| Namespace::new("lb-b")).collect(),
        };
        network.join("eth1", &network.client, packet::CLIENT_MAC);
        let more = (1..=10).map(|n| {
            format!(
                "addr add {}/32 dev eth1\naddr add {}/128 dev eth1 nodad\n",
                Family::V4.client(n),
                Family::V6.client(n)
            )
        });
        let own = format!(
            "addr add {}/24 dev eth1\naddr add {}/64 dev eth1 nodad\n",
            Family::V4.client(0),
            Family::V6.client(0)
        );
        batch(&network.client, &(own + &more.collect::<String>()));
        for (index, backend) in (0u8..).zip(&network.backends) {
            network.join(&format!("eth{}", index + 2), backend, packet::backend_mac(index));
            let lines = format!(
                "addr add {}/24 dev eth1\naddr add {}/64 dev eth1 nodad\n\
                 route add 192.0.0.0/16 via {}\nroute add 2001:db8::/32 via {}\n",
                packet::VIP4,
                packet::VIP6,
                Family::V4.client(0),
                Family::V6.client(0)
            );
            batch(backend, &lines);
        }
        network
    }

    /// Links an interface of the balancer to `eth1` of a namespace, and prepares that as redirects need it.
    #[track_caller]
    pub fn join(&self, interface: &str, far: &Namespace, mac: [u8; 6]) {
        for scope in ["all", "default"] {
            far.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
        }
        let mac = macaddr::MacAddr6::from(mac);
        let balancer = &self.lab.balancer;
        batch(
            balancer,
            &format!(
                "link add {interface} type veth peer name eth1 address {mac} netns {}\nlink set {interface} up\n",
                far.name()
            ),
        );
        far.ip(&["link", "set", "eth1", "up"]);
        // GRO counts only from the moment that it is switched on while the interface is up.
        far.exec(&["ethtool", "-K", "eth1", "gro", "on", "tx", "off", "tso", "off", "gso", "off"]);
    }

    /// `eth1` and `eth2..eth5` as the options of an attach, each backend's MAC given.
    pub fn ports_with_macs() -> String {
        let given = (0..BACKENDS).map(|index| {
            format!("eth{}={}", index + 2, macaddr::MacAddr6::from(packet::backend_mac(index as u8)))
        });
        format!("--ingress eth1 --egress {}", given.collect::<Vec<_>>().join(","))
    }

    /// Attaches to all interfaces, with the backends' MACs given; there must be nothing to warn about.
    #[track_caller]
    pub fn attach(&self, arguments: &str) {
        let ended = self.lab.attach(&format!("{} {arguments}", Self::ports_with_macs()));
        assert_eq!(ended.stderr, "", "a lab that is set up well has nothing to mend");
        ended.done();
    }

    /// Sends pings from one of the client's addresses to the VIP. Returns how many were answered.
    #[track_caller]
    pub fn ping(&self, family: Family, client: u8, options: &str) -> usize {
        let mut command = self.client.command("ping");
        command.args(["-n", "-w", "20", "-I"]).arg(family.client(client).to_string());
        command.args(options.split_whitespace()).arg(family.vip().to_string());
        let printed = Ended::of(&mut command);
        printed.stdout.lines().filter(|line| line.contains("bytes from")).count()
    }
}

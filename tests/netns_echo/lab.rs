//! A responder's namespace and one to ping it from, and the binary run on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fmt, fs};

use macaddr::MacAddr6;
use serde_json::Value;

pub use crate::common::command::{Ended, LB, PATIENCE, Running, eventually};
use crate::common::folder::listing;
use crate::common::kernel::Footprint;
use crate::common::namespace::{Namespace, batch};
use crate::common::packet::{CLIENT_MAC, GATEWAY_MAC};

/// How long to wait for answers that should not come.
pub const SILENCE: Duration = Duration::from_millis(300);

/// Where in the kernel the responder works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Drv,
    Skb,
}

impl Mode {
    pub const BOTH: [Self; 2] = [Self::Drv, Self::Skb];
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if *self == Self::Drv { "drv" } else { "skb" })
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

    /// Host `number` of the network between `eth0` and `far0`: the responder is 1, those who ping it are 2 and more.
    pub fn host(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// A host behind the responder.
    pub fn elsewhere(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 7).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
        }
    }

    /// The headers of a ping in a frame.
    pub fn headers(self) -> u64 {
        // Ethernet, IP, ICMP.
        14 + if self == Self::V4 { 20 } else { 40 } + 8
    }
}

/// What came of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    pub sent: u64,
    pub received: u64,
}

impl Pings {
    /// Reads the last lines that ping prints.
    #[track_caller]
    pub fn of(printed: &str) -> Self {
        let summary = printed.lines().find(|line| line.contains("packets transmitted"));
        let summary = summary.unwrap_or_else(|| panic!("no summary of pings: {printed}"));
        assert!(!summary.contains("duplicates"), "{summary}");
        let number = |word: &str| {
            let part = summary.split(", ").find(|part| part.contains(word)).expect("ping counts");
            part.split(' ').next().and_then(|number| number.parse().ok()).expect("a count is a number")
        };
        Self { sent: number("transmitted"), received: number("received") }
    }

    /// That there were so many, and none was lost.
    #[track_caller]
    pub fn all(self, count: u64) {
        assert_eq!(self, Self { sent: count, received: count });
    }

    /// That there were so many, and all were lost.
    #[track_caller]
    pub fn none(self, count: u64) {
        assert_eq!(self, Self { sent: count, received: 0 });
    }
}

/// A responder's namespace with `eth0`, one behind it with `far0`, and a pin root. Everything goes when this is dropped, also by
/// a test that fails.
pub struct Lab {
    pub root: PathBuf,
    pub near: Namespace,
    pub far: Namespace,
}

impl Lab {
    /// Both namespaces without interfaces.
    #[track_caller]
    pub fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            root: format!("/sys/fs/bpf/lb-test-echo-{}-{count}", process::id()).into(),
            near: Namespace::new("lb-n"),
            far: Namespace::new("lb-f"),
        }
    }

    /// With `eth0` and `far0`, both up and with the addresses 1 and 2 of both families.
    #[track_caller]
    pub fn new() -> Self {
        let lab = Self::empty();
        lab.link("eth0");
        lab
    }

    /// Makes an interface in `near`, and `far0` as its other end in `far`.
    #[track_caller]
    pub fn link(&self, dev: &str) {
        let [near, far] = [GATEWAY_MAC, CLIENT_MAC].map(MacAddr6::from);
        let lines = format!(
            "link add {dev} address {near} type veth peer name far0 address {far} netns {}\n",
            self.far.name()
        );
        batch(&self.near, &lines);
        for (namespace, interface, number) in [(&self.near, dev, 1), (&self.far, "far0", 2)] {
            let [v4, v6] = Family::BOTH.map(|family| family.host(number));
            let lines = format!(
                "address add {v4}/24 dev {interface}\naddress add {v6}/64 dev {interface} nodad\nlink set {interface} up\n"
            );
            batch(namespace, &lines);
        }
        // The kernel gives each end a link-local address a moment after it has found a carrier.
        for (namespace, interface) in [(&self.near, dev), (&self.far, "far0")] {
            let addresses = || namespace.ip(&["-6", "address", "show", "dev", interface]);
            assert!(eventually(PATIENCE, || addresses().contains(" fe80:")), "{}", addresses());
        }
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

    /// The arguments of an attach to `eth0`.
    pub fn echo_arguments(&self, arguments: &str) -> String {
        format!("echo attach --netns {} --dev eth0 {arguments}", self.near.name())
    }

    /// Runs an attach to `eth0` to its end.
    #[track_caller]
    pub fn echo(&self, arguments: &str) -> Ended {
        self.lb(&self.echo_arguments(arguments))
    }

    /// Attaches to `eth0` in this mode, and to `far0` what that needs; there must be nothing to warn about.
    #[track_caller]
    pub fn attach(&self, mode: Mode, arguments: &str) {
        let ended = self.echo(&format!("--mode {mode} {} {arguments}", peer_option(mode)));
        assert_eq!(ended.stderr, "", "there is nothing to mend");
        ended.done();
    }

    /// Runs `pass attach` on `far0` to its end.
    #[track_caller]
    pub fn pass(&self, arguments: &str) -> Ended {
        self.lb(&format!("pass attach --netns {} --dev far0 {arguments}", self.far.name()))
    }

    /// A ping from `far`, with these options.
    pub fn ping_command(&self, to: IpAddr, options: &str) -> Command {
        let mut command = self.far.command("ping");
        command.args(["-n", "-q"]).args(options.split_whitespace()).arg(to.to_string());
        command
    }

    /// Sends so many pings from `far`, and waits for the answers as long as it takes.
    #[track_caller]
    pub fn ping(&self, to: IpAddr, count: u64, options: &str) -> Pings {
        let options = format!("-c {count} -i 0.002 -W {} {options}", PATIENCE.as_secs());
        Pings::of(&Ended::of(&mut self.ping_command(to, &options)).done())
    }

    /// Sends pings that should get no answer.
    #[track_caller]
    pub fn ping_in_vain(&self, to: IpAddr, count: u64, options: &str) {
        let options = format!("-c {count} -i 0.002 -W {} {options}", SILENCE.as_secs_f64());
        Pings::of(&Ended::of(&mut self.ping_command(to, &options)).stdout).none(count);
    }

    /// Has `far` send to an address by a MAC, without asking whose it is.
    #[track_caller]
    pub fn neighbour(&self, address: IpAddr, mac: [u8; 6]) {
        let (address, mac) = (address.to_string(), MacAddr6::from(mac).to_string());
        self.far.ip(&["neighbour", "replace", &address, "lladdr", &mac, "dev", "far0"]);
    }

    /// The counters of the responder on `eth0`.
    #[track_caller]
    pub fn stats(&self) -> Value {
        self.lb("echo stats --dev eth0 --json").json()
    }

    /// How many packets have ended in a verdict.
    #[track_caller]
    pub fn verdict(&self, verdict: &str) -> u64 {
        let stats = self.stats();
        stats["verdicts"][verdict]["packets"].as_u64().unwrap_or_else(|| panic!("no {verdict}: {stats}"))
    }

    /// How many requests have been answered.
    #[track_caller]
    pub fn replies(&self) -> u64 {
        self.verdict("reply")
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

    /// The interfaces in that status, each with its role.
    #[track_caller]
    pub fn interfaces(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
        let status = self.status();
        let interfaces = status["interfaces"].as_array().expect("there are interfaces").iter();
        interfaces.map(|interface| (text(&interface["dev"]), text(&interface["role"]))).collect()
    }

    /// What of this lab is in the kernel.
    #[track_caller]
    pub fn footprint(&self) -> Footprint {
        Footprint::pinned(&self.root)
    }

    /// The kernel's and the file system's word that nothing is attached, pinned or left.
    #[track_caller]
    pub fn assert_no_trace(&self) {
        assert!(!self.root.exists(), "{} is left: {:?}", self.root.display(), listing(&self.root));
        self.assert_xdp_on(&[]);
    }

    /// Waits until these interfaces of both namespaces have a program, and no others. A link that a process has let go of may
    /// last a moment longer, in a child that another thread of it has forked.
    #[track_caller]
    pub fn assert_xdp_on(&self, wanted: &[&str]) {
        let found = || {
            let mut found = Vec::new();
            for namespace in [&self.near, &self.far] {
                found.extend(xdp_programs(namespace).into_iter().map(|(interface, _)| interface));
            }
            found.sort();
            found
        };
        assert!(
            eventually(PATIENCE, || found() == wanted),
            "programs are on {:?}, not on {wanted:?}",
            found()
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command("detach --all --quiet").stdin(Stdio::null()).stderr(Stdio::null()).status();
        // What a test has put there itself. Removing the pin of a link detaches it.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What an attach needs so that replies leave a veth.
pub fn peer_option(mode: Mode) -> &'static str {
    if mode == Mode::Drv { "--with-peer" } else { "" }
}

/// The interfaces of a namespace that have a program, each with the program's id, as `ip link show` says.
#[track_caller]
pub fn xdp_programs(namespace: &Namespace) -> Vec<(String, u64)> {
    let links = namespace.ip(&["-json", "link", "show"]);
    let links: Value = serde_json::from_str(&links).expect("ip prints JSON");
    let with_program =
        |link: &Value| Some((link["ifname"].as_str()?.to_owned(), link.get("xdp")?["prog"]["id"].as_u64()?));
    links.as_array().expect("a list").iter().filter_map(with_program).collect()
}

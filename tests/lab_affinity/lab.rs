//! The lab of `lab/nat.clab.yml` with the balancer on it, its nodes, and pings that go on beside a test.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::namespace::run;
use crate::wire::interrupt;

pub const BACKENDS: usize = 4;

/// Bound of all that is waited for; nothing here takes so long.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until something holds.
#[track_caller]
pub fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it does not come that {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A machine of the lab.
pub struct Node {
    name: String,
    pid: u64,
}

impl Node {
    fn enter(&self, how: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid)).args(["--net", "--mount", "--pid", "--uts"]);
        command.args(how).arg("--").arg(program);
        command
    }

    /// A command that will run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.enter(&[], program)
    }

    /// A command that will run there as the very child that is started, so that it can be sent a signal. It does not
    /// see the node's processes by their numbers.
    pub fn child(&self, program: impl AsRef<OsStr>) -> Command {
        self.enter(&["--no-fork"], program)
    }

    /// Runs a line of shell there; it has to succeed.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(self.command("sh").args(["-ec", line]))
    }
}

/// What `scripts/lab tunnels status` says of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub name: String,
    /// The client that has it.
    pub node: String,
    pub inner: String,
    /// The backend that has it by its own account, from 0.
    pub backend: usize,
    /// Of its IKE SA.
    pub initiator_spi: u64,
    /// Of the ESP that the client sends.
    pub esp_spi: u32,
    /// The client's address and port as they arrive at the backend.
    pub endpoint: String,
}

/// A lab of its own; it goes with all that is attached when this is dropped, also by a test that fails.
pub struct Lab {
    prefix: String,
    nodes: BTreeMap<String, Node>,
}

impl Lab {
    /// Builds a lab with so many clients, and attaches the balancer with more arguments, separated by spaces.
    #[track_caller]
    pub fn up(clients: u32, attach: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self { prefix: format!("lba{}n{count}", std::process::id()), nodes: BTreeMap::new() };
        lab.script(&["up", "--topology", "lab/nat.clab.yml", "--clients", &clients.to_string()]);
        let status: Value = serde_json::from_str(&lab.script(&["status", "--json"])).expect("it prints JSON");
        for node in status["nodes"].as_array().expect("there are nodes") {
            let name = node["node"].as_str().expect("a node has a name").to_owned();
            let pid = node["pid"].as_u64().expect("a node runs");
            lab.nodes.insert(name.clone(), Node { name, pid });
        }
        lab.attach(attach);
        lab
    }

    /// Attaches the balancer.
    #[track_caller]
    pub fn attach(&self, arguments: &str) {
        let netns = format!("{}-LB1", self.prefix);
        let common = "attach --affinity tunnel --vip 192.0.0.2 --ingress eth1 --egress eth2..eth5 --netns";
        self.lb(&format!("{common} {netns} {arguments}"));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("scripts/lab"));
        command.args(["--prefix", &self.prefix]).args(arguments).current_dir(root);
        command
    }

    /// Runs `scripts/lab`; it has to succeed.
    #[track_caller]
    pub fn script(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    fn lb_command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
        command
            .args(["--pin-root", &format!("/sys/fs/bpf/{}", self.prefix)])
            .args(arguments.split_whitespace());
        command
    }

    /// Runs the balancer's binary; it has to succeed.
    #[track_caller]
    pub fn lb(&self, arguments: &str) -> String {
        run(&mut self.lb_command(arguments))
    }

    /// Runs the balancer's binary, which has to fail; returns its error.
    #[track_caller]
    pub fn lb_fails(&self, arguments: &str) -> String {
        let output = self.lb_command(arguments).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{arguments}: {output:?}");
        String::from_utf8(output.stderr).expect("lb prints UTF-8")
    }

    /// What the balancer's binary prints as JSON; it has to succeed.
    #[track_caller]
    pub fn lb_json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.lb(&format!("--json {arguments}"))).expect("it prints JSON")
    }

    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// The names of the clients, or of the backends, as they begin.
    pub fn names(&self, beginning: &str) -> Vec<&str> {
        self.nodes
            .values()
            .map(|node| node.name.as_str())
            .filter(|name| name.starts_with(beginning))
            .collect()
    }

    /// Adds settings for strongSwan in nodes: to `strongswan.conf`, after which it starts anew, or to `swanctl.conf`.
    #[track_caller]
    pub fn configure(&self, file: &str, nodes: &[&str], settings: &str) {
        let mut command = self.command(&[&["configure", file], nodes].concat());
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the script runs");
        child.stdin.take().expect("it is piped").write_all(settings.as_bytes()).expect("it reads all");
        assert!(
            child.wait().expect("a child can be waited for").success(),
            "{nodes:?} do not take {settings}"
        );
    }

    /// Brings all tunnels up, all at once, and says where they are.
    #[track_caller]
    pub fn tunnels_up(&self) -> Vec<Tunnel> {
        self.script(&["tunnels", "up", "--at-once"]);
        self.tunnels()
    }

    /// Brings the tunnels of the first clients up, one after the other, and says where they are.
    #[track_caller]
    pub fn first_tunnels_up(&self, clients: usize) -> Vec<Tunnel> {
        for node in &self.names("CL")[..clients] {
            self.node(node).sh("swanctl --initiate --child tun$(hostname | tr -d CL)");
        }
        self.tunnels_of(clients).unwrap_or_else(|status| panic!("not all tunnels are up: {status}"))
    }

    /// All tunnels, which have to be up, each at one backend by the backends' own account.
    #[track_caller]
    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.tunnels_now().unwrap_or_else(|status| panic!("not all tunnels are up: {status}"))
    }

    /// The same, or what the script says where a tunnel is not up or at two backends.
    pub fn tunnels_now(&self) -> Result<Vec<Tunnel>, Value> {
        self.tunnels_of(self.names("CL").len())
    }

    /// The same of the first clients.
    fn tunnels_of(&self, clients: usize) -> Result<Vec<Tunnel>, Value> {
        let output = self.command(&["tunnels", "status", "--json"]).output().expect("the script runs");
        let status: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
        let rows = status["tunnels"].as_array().expect("there are tunnels");
        rows[..clients].iter().map(tunnel).collect::<Option<_>>().ok_or_else(|| status.clone())
    }

    /// Starts pings through these tunnels.
    #[track_caller]
    pub fn ping<'a>(&self, tunnels: impl IntoIterator<Item = &'a Tunnel>) -> Vec<Ping> {
        tunnels.into_iter().map(|tunnel| Ping::start(self.node(&tunnel.node), tunnel)).collect()
    }

    /// One of the totals of `lb stats`.
    #[track_caller]
    pub fn verdict(&self, name: &str) -> u64 {
        let stats = self.lb_json("stats");
        stats["verdicts"][name]["packets"].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"))
    }

    /// Nothing that belongs to a tunnel was dropped.
    #[track_caller]
    pub fn assert_nothing_dropped(&self) {
        for verdict in ["malformed", "keepalive_dropped", "no_backend"] {
            assert_eq!(self.verdict(verdict), 0, "{verdict}");
        }
    }
}

/// A tunnel that is up and at one backend.
fn tunnel(row: &Value) -> Option<Tunnel> {
    let text = |key: &str| row[key].as_str().map(str::to_owned);
    let [concentrator] = row["concentrators"].as_array()?.as_slice() else { return None };
    let number: usize = concentrator.as_str()?.strip_prefix("TEIP")?.parse().ok()?;
    Some(Tunnel {
        name: text("tunnel")?,
        node: text("node")?,
        inner: text("inner")?,
        backend: number - 1,
        initiator_spi: u64::from_str_radix(&text("initiator_spi")?, 16).ok()?,
        esp_spi: u32::from_str_radix(&text("esp_spi")?, 16).ok()?,
        endpoint: text("arrives_from")?.replace(' ', ":"),
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            // What the test cannot say: it is shown with the test's own words.
            let _ = self.lb_command("session list").status();
            let _ = self.lb_command("stats").status();
        }
        // A failure here would hide the one that ends the test.
        let _ = self.lb_command("--quiet detach --all").status();
        let _ = self.command(&["--quiet", "down"]).status();
    }
}

/// Where tunnels are: the backend of each, by its name.
pub fn places(tunnels: &[Tunnel]) -> BTreeMap<&str, usize> {
    tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel.backend)).collect()
}

/// How many tunnels each backend has.
pub fn spread(tunnels: &[Tunnel]) -> [usize; BACKENDS] {
    let mut counts = [0; BACKENDS];
    tunnels.iter().for_each(|tunnel| counts[tunnel.backend] += 1);
    counts
}

/// What has been answered.
#[derive(Debug, Default)]
struct Answers {
    received: BTreeSet<u32>,
}

/// A ping through a tunnel, twenty a second, until it is stopped.
pub struct Ping {
    tunnel: String,
    child: Child,
    answers: Arc<Mutex<Answers>>,
}

impl Ping {
    #[track_caller]
    fn start(node: &Node, tunnel: &Tunnel) -> Self {
        let mut child = node
            .child("ping")
            .args(["-n", "-i", "0.05", "-I", &tunnel.inner, "10.2.2.2"])
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ping is installed");
        let answers = Arc::new(Mutex::new(Answers::default()));
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let noted = Arc::clone(&answers);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // 64 bytes from 10.2.2.2: icmp_seq=7 ttl=64 time=0.5 ms
                let Some((_, rest)) = line.split_once("icmp_seq=") else { continue };
                let Some((number, rest)) = rest.split_once(' ') else { continue };
                if let (Ok(number), true) = (number.parse(), rest.contains("time=")) {
                    noted.lock().unwrap().received.insert(number);
                }
            }
        });
        Self { tunnel: tunnel.name.clone(), child, answers }
    }

    fn answered(&self) -> usize {
        self.answers.lock().unwrap().received.len()
    }

    /// How many were not answered up to the last that was.
    pub fn lost(&self) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.received.last().map_or(0, |last| *last as usize) - answers.received.len()
    }

    /// The longest run of those that were not answered, up to the last that was: how long the tunnel was silent.
    pub fn longest_gap(&self) -> u32 {
        let answers = self.answers.lock().unwrap();
        let mut previous = 0;
        answers
            .received
            .iter()
            .map(|number| number - std::mem::replace(&mut previous, *number) - 1)
            .max()
            .unwrap_or(0)
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        interrupt(&self.child);
        let _ = self.child.wait();
    }
}

/// Waits until each of them has had so many more answers.
#[track_caller]
pub fn await_answers(pings: &[Ping], count: usize) {
    let before: Vec<usize> = pings.iter().map(Ping::answered).collect();
    for (ping, before) in pings.iter().zip(before) {
        await_that(&format!("pings through {} are answered", ping.tunnel), || {
            ping.answered() >= before + count
        });
    }
}

/// All have been answered.
#[track_caller]
pub fn assert_none_lost(pings: &[Ping]) {
    let mut losses = String::new();
    for ping in pings.iter().filter(|ping| ping.lost() > 0) {
        let _ =
            writeln!(losses, "{}: {} of {} lost", ping.tunnel, ping.lost(), ping.lost() + ping.answered());
    }
    assert!(losses.is_empty(), "{losses}");
}

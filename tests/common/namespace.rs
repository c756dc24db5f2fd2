//! Network namespaces that live as long as a test, with veths between them.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use lb::kernel::netns;

/// A network namespace with a name of its own, removed with all its interfaces when this is dropped, also by a
/// test that fails.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose name begins with `prefix`. Its loopback interface is up, and IPv6 addresses are usable
    /// at once (no duplicate address detection).
    #[track_caller]
    pub fn new(prefix: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
        }
        namespace
    }

    /// Its name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. Unlike `ip netns exec` it keeps bpffs in sight.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Runs a command inside to its end and returns what it printed; it has to succeed.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        run(self.command(command[0]).args(&command[1..]))
    }

    /// Runs `ip` inside, and returns what it printed; it has to succeed.
    #[track_caller]
    pub fn ip(&self, arguments: &[&str]) -> String {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// Runs `work` inside, on a thread of its own.
    #[track_caller]
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(Some(&self.name), work).expect("the namespace can be entered")
    }

    /// Sets a network parameter, by its path below `/proc/sys`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.within(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("cannot set {path}: {error}"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure here would hide the one that ends the test; and a test may have removed it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Links two namespaces, or one with itself, by a veth that is up at both ends.
#[track_caller]
pub fn veth(one: (&Namespace, &str), other: (&Namespace, &str)) {
    let add = ["link", "add", one.1, "type", "veth", "peer", "name", other.1, "netns", other.0.name()];
    one.0.ip(&add);
    for (namespace, interface) in [one, other] {
        namespace.ip(&["link", "set", interface, "up"]);
    }
}

/// Runs a command to its end and returns what it printed; it has to succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// Runs lines of `ip` inside a namespace; they have to succeed.
#[track_caller]
pub fn batch(namespace: &Namespace, lines: &str) {
    let mut command = Command::new("ip");
    command.args(["-n", namespace.name(), "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ip is installed");
    child.stdin.take().expect("it is piped").write_all(lines.as_bytes()).expect("ip reads its lines");
    let output = child.wait_with_output().expect("a child can be waited for");
    assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
}

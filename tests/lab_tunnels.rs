//! The main job on the real thing: ten strongSwan tunnels of the lab, through the balancer on real interfaces.

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use common::namespace::run;

/// A lab of its own, with the balancer on it; both go when this is dropped, also by a test that fails.
struct Lab {
    prefix: String,
}

impl Lab {
    #[track_caller]
    fn up(mode: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self { prefix: format!("lbt{}n{count}", std::process::id()) };
        run(&mut lab.script(&["up"]));
        let netns = format!("{}-LB1", lab.prefix);
        let attach =
            ["attach", "--ingress", "eth1", "--egress", "eth2..eth5", "--mode", mode, "--netns", &netns];
        run(lab.lb().args(attach));
        lab
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab"));
        command.args(["--prefix", &self.prefix]).args(arguments);
        command
    }

    fn lb(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
        command.args(["--pin-root", &format!("/sys/fs/bpf/{}", self.prefix)]);
        command
    }

    #[track_caller]
    fn json(&self, command: &mut Command) -> Value {
        serde_json::from_str(&run(command)).expect("the command prints JSON")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failure here would hide the one that ends the test.
        let _ = self.lb().args(["-q", "detach", "--all"]).status();
        let _ = self.script(&["--quiet", "down"]).status();
    }
}

/// The number of tunnels or sessions at each of the four, in their order.
fn spread(counts: impl IntoIterator<Item = u64>) -> Vec<u64> {
    counts.into_iter().collect()
}

#[track_caller]
fn ten_tunnels_spread(mode: &str) {
    let lab = Lab::up(mode);
    for family in ["4", "6"] {
        // The tunnels of the other family are down by then, and their clients are other addresses: turns go on
        // where they stopped, so counting begins anew.
        run(lab.lb().args(["session", "flush"]));
        run(&mut lab.script(&["tunnels", "up", "--family", family]));
        run(&mut lab.script(&["tunnels", "ping", "--family", family]));

        let seen = lab.json(&mut lab.script(&["tunnels", "status", "--family", family, "--json"]));
        assert_eq!(seen["established"], 10, "{seen}");
        let concentrators = ["TEIP1", "TEIP2", "TEIP3", "TEIP4"];
        let at_concentrators =
            spread(concentrators.iter().map(|name| seen["spread"][*name].as_u64().unwrap_or_default()));
        let backends = lab.json(lab.lb().args(["backend", "list", "--json"]));
        let backends = backends.as_array().expect("a list of backends");
        let at_backends =
            spread(backends.iter().map(|backend| backend["sessions"].as_u64().expect("a number")));
        let mut sorted = at_backends.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [2, 2, 3, 3], "IPv{family}, {mode}");
        assert_eq!(at_backends, at_concentrators, "lb and the concentrators count differently");

        let sessions = lab.json(lab.lb().args(["session", "list", "--json"]));
        for session in sessions.as_array().expect("a list of sessions") {
            assert_eq!(session["state"], "established", "{session}");
        }
        run(&mut lab.script(&["tunnels", "down", "--family", family]));
    }
    let stats = lab.json(lab.lb().args(["stats", "--json"]));
    for dropped in ["malformed", "keepalive_dropped", "no_backend"] {
        assert_eq!(stats["verdicts"][dropped]["packets"], 0, "{dropped}: {stats}");
    }
}

#[test]
fn root_lab_ten_tunnels_spread_over_four_concentrators_in_drv_mode() {
    ten_tunnels_spread("drv");
}

#[test]
fn root_lab_ten_tunnels_spread_over_four_concentrators_in_skb_mode() {
    ten_tunnels_spread("skb");
}

/// No process carries the tunnels, so none can take them down with it.
#[test]
fn root_lab_tunnels_outlive_every_process_of_lb() {
    let lab = Lab::up("drv");
    run(&mut lab.script(&["tunnels", "up"]));
    let mut watching = lab
        .lb()
        .args(["stats", "--interval", "100ms"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("lb stats runs");
    watching.kill().expect("it can be killed");
    watching.wait().expect("it can be waited for");
    let Output { status, stdout, .. } =
        lab.script(&["tunnels", "ping", "--count", "5"]).output().expect("the lab's script runs");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stdout));
}

//! The echo responder's user space: everything about it but the command line.

pub mod attach;
pub mod datapath;
pub mod watch;

use crate::stats::{Action, Verdict};
use skeleton::types::echo_verdict;

/// The generated skeleton of `bpf/echo.bpf.c`; its `types` are the structs of `bpf/include/echo.h`.
#[allow(clippy::all, clippy::pedantic)]
pub mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/echo.skel.rs"));
}

/// The folder of the responder's instances under the pin root.
pub const GROUP: &str = "echo";

/// The verdicts, in the order of `enum echo_verdict`.
pub const VERDICTS: [Verdict; echo_verdict::ECHO_VERDICTS.0 as usize] = [
    Verdict::new("reply", Action::Tx, "echo requests, sent back as replies"),
    Verdict::new("rate_limited", Action::Drop, "dropped: their source asks more often than --rate"),
    Verdict::new("not_echo", Action::Pass, "no echo requests"),
    Verdict::new("other_mac", Action::Pass, "echo requests for another MAC"),
    Verdict::new(
        "other_address",
        Action::Pass,
        "echo requests for an address that is not ours, or is no host's",
    ),
    Verdict::new("bad_source", Action::Pass, "echo requests from what is no other host's address"),
    Verdict::new("fragment", Action::Pass, "fragments of ICMP"),
    Verdict::new(
        "options",
        Action::Pass,
        "echo requests with IPv4 options, or telling IPv6 extension headers",
    ),
    Verdict::new("bad_checksum", Action::Pass, "echo requests with a wrong checksum"),
    Verdict::new("malformed", Action::Pass, "a header does not fit or contradicts itself"),
];

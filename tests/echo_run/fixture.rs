//! What a fixture is, and how it is run: one frame, and all that may come of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use lb::echo::VERDICTS;
use lb::echo::datapath::{Datapath, Settings, View};
use lb::echo::skeleton::types::echo_verdict;
use lb::kernel::counters::Count;
use lb::kernel::program::{Run, RunOptions};
use lb::stats;

use crate::common::decode;
use crate::common::packet::{GATEWAY_MAC, Ping};

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

pub const OWN_MAC: [u8; 6] = GATEWAY_MAC;
pub const OWN4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub const PEER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 255);

/// TTL and hop limit of replies: neither each other's nor those of requests.
pub const TTL: u8 = 61;
pub const HOP_LIMIT: u8 = 62;

/// The interface that fixtures come in on, if they do not say more.
pub fn view() -> View {
    View {
        mac: OWN_MAC.into(),
        ttl: TTL,
        hop_limit: HOP_LIMIT,
        addresses: vec![OWN4.into(), OWN6.into()],
        broadcasts: vec![BROADCAST],
    }
}

/// Runs `work` with a request of each family, from a peer to an address of ours.
#[track_caller]
pub fn families(work: impl Fn(Ping)) {
    work(Ping::request(PEER4.into(), OWN4.into()));
    work(Ping::request(PEER6.into(), OWN6.into()));
}

/// Neither ours nor the peer, of the family of `address`.
pub fn stranger(address: IpAddr) -> IpAddr {
    if address.is_ipv6() { "fd00::9".parse() } else { "10.0.0.9".parse() }.expect("an address")
}

/// What is to become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is sent back like this.
    Reply(Vec<u8>),
    RateLimited,
    /// It goes to the stack as it came.
    Passed(echo_verdict),
}

/// A frame, and what is to come of it.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub description: String,
    pub frame: Vec<u8>,
    pub expected: Expected,
}

/// A frame that goes to the stack.
pub fn passed(description: impl Into<String>, frame: Vec<u8>, verdict: echo_verdict) -> Fixture {
    Fixture { description: description.into(), frame, expected: Expected::Passed(verdict) }
}

/// A request that is answered as a whole computation of the reply has it.
pub fn answered(description: impl Into<String>, request: &Ping) -> Fixture {
    let ttl = if request.source.is_ipv6() { HOP_LIMIT } else { TTL };
    let expected = Expected::Reply(request.reply(ttl).frame());
    Fixture { description: description.into(), frame: request.frame(), expected }
}

impl Fixture {
    /// Compares what came of the frame, the counters before and after it among that.
    #[track_caller]
    pub fn compare(&self, run: &Run, before: &[Count], after: &[Count], counted: RangeInclusive<u64>) {
        let Self { description, frame, expected } = self;
        let (verdict, action, bytes) = match expected {
            Expected::Reply(reply) => (echo_verdict::ECHO_REPLY, XDP_TX, reply),
            Expected::RateLimited => (echo_verdict::ECHO_RATE_LIMITED, XDP_DROP, frame),
            Expected::Passed(verdict) => (*verdict, XDP_PASS, frame),
        };
        let verdict = verdict.0 as usize;
        let counts: Vec<String> = (0..VERDICTS.len())
            .map(|index| (index, after[index] - before[index]))
            .filter(|(_, count)| *count != Count::default())
            .map(|(index, count)| format!("{}: {count:?}", VERDICTS[index].name))
            .collect();
        let count = after[verdict] - before[verdict];
        assert!(
            run.action == action
                && run.packet == *bytes
                && counts.len() == 1
                && count.packets == 1
                && counted.contains(&count.bytes),
            "{description}: expected {}, action {action}, {counted:?} bytes\nfound action {}, {}\nin:  {}\nout: {}\nexpected: {}",
            VERDICTS[verdict].name,
            run.action,
            counts.join(", "),
            decode::show(frame),
            decode::show(&run.packet),
            decode::show(bytes)
        );
    }
}

/// A loaded responder.
pub struct Responder {
    pub datapath: Datapath,
}

impl Responder {
    /// One that answers for the addresses of the usual view, or with `any` for all.
    #[track_caller]
    pub fn new(any: bool) -> Self {
        Self::with(any, Duration::ZERO, &view())
    }

    #[track_caller]
    pub fn with(any: bool, source_interval: Duration, view: &View) -> Self {
        let datapath = Datapath::load(&Settings { any, source_interval }, None).expect("the program loads");
        let responder = Self { datapath };
        responder.set(view);
        responder
    }

    #[track_caller]
    pub fn set(&self, view: &View) {
        self.datapath.maps.set_view(view).expect("the view can be set");
    }

    pub fn counts(&self) -> Vec<Count> {
        stats::read(&self.datapath.maps.verdicts, VERDICTS.len()).expect("counters can be read")
    }

    #[track_caller]
    pub fn run(&self, frame: &[u8]) -> Run {
        self.datapath.program.run(frame, RunOptions::default()).expect("the program runs")
    }

    /// Runs the program on a fixture's frame, and looks at its action, its bytes, and all counters.
    #[track_caller]
    pub fn check(&self, fixture: &Fixture) {
        let whole = fixture.frame.len() as u64;
        self.check_counted(fixture, whole..=whole);
    }

    /// The same, where the counted bytes may be some of these.
    #[track_caller]
    pub fn check_counted(&self, fixture: &Fixture, counted: RangeInclusive<u64>) {
        let before = self.counts();
        let run = self.run(&fixture.frame);
        fixture.compare(&run, &before, &self.counts(), counted);
    }

    /// The request is answered.
    #[track_caller]
    pub fn answers(&self, description: impl Into<String>, request: &Ping) {
        self.check(&answered(description, request));
    }

    /// The frame goes to the stack.
    #[track_caller]
    pub fn passes(&self, description: impl Into<String>, frame: Vec<u8>, verdict: echo_verdict) {
        self.check(&passed(description, frame, verdict));
    }
}

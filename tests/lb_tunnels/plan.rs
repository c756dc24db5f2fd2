//! What happens in a run, as random plans: each event names whom it is about by number, and the world makes of it what
//! fits its state. An event that fits nothing does nothing, so any part of a plan is a plan.

use lb::lb::backend::Wanted;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::world::{ADDRESSES, BACKENDS, HOSTS};

/// The longest plan.
const EVENTS_MAX: usize = 90;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client begins an IKE SA: its first, or a new one for the one that it has.
    Start {
        host: u8,
    },
    /// A client sends the last request of its handshake again.
    Retransmit {
        host: u8,
    },
    /// ESP of a client; `old` takes an SA or a tunnel before the newest.
    Esp {
        host: u8,
        old: bool,
    },
    Keepalive {
        host: u8,
    },
    Ping {
        host: u8,
    },
    /// An IKE request that wants nothing but an answer, as dead peer detection or the end of an SA are.
    Informational {
        host: u8,
        old: bool,
    },
    RekeyChild {
        host: u8,
    },
    RekeyIke {
        host: u8,
    },
    /// A client goes to another address, and says so (MOBIKE).
    Move {
        host: u8,
        address: u8,
    },
    /// The NAT gives a client another port, and nobody says so.
    Rebind {
        host: u8,
    },
    BackendEsp {
        host: u8,
        old: bool,
    },
    BackendInformational {
        host: u8,
        old: bool,
    },
    BackendRekeyChild {
        host: u8,
    },
    BackendRekeyIke {
        host: u8,
    },
    /// A router on the way to a client reports an error about what the backend sends it.
    IcmpError {
        host: u8,
    },
    Stray {
        stray: Stray,
        address: u8,
        near: bool,
    },
    /// Packets of an address come in on the other client-side interface from now on.
    Reroute {
        address: u8,
    },
    Change {
        backend: u8,
        wanted: Wanted,
    },
    /// The same for the backend of a client.
    ChangeHome {
        host: u8,
        wanted: Wanted,
    },
    /// Backends want cookies from now on, or no more.
    Cookies {
        on: bool,
    },
    /// A second passes.
    Pause,
    /// A packet that is under way from a client arrives, or not.
    Up {
        which: u8,
        fate: Fate,
    },
    Down {
        which: u8,
        fate: Fate,
    },
    /// All that is under way arrives in order, and what is answered to it.
    Settle,
}

/// A packet that belongs to no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    Start,
    Ike,
    Esp,
    Response,
    Keepalive,
    Noise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    /// It arrives, and again later.
    Doubled,
    LostBefore,
    /// Lost behind the balancer.
    LostBehind,
}

pub fn plans() -> impl Strategy<Value = Vec<Event>> {
    // Some runs are about clients alone, some about backends that come and go too.
    let of = |changes| {
        let part = prop_oneof![
            12 => event(changes).prop_map(|event| vec![event]),
            1 => tale(changes > 0),
        ];
        vec(part, 1..EVENTS_MAX).prop_map(|parts| {
            let mut events: Vec<Event> = parts.into_iter().flatten().collect();
            events.truncate(EVENTS_MAX);
            events
        })
    };
    prop_oneof![of(0), of(2)]
}

/// Much of what may happen to one client in its time, in an order that makes sense; parts are left out.
fn tale(changes: bool) -> impl Strategy<Value = Vec<Event>> {
    let host = 0..HOSTS as u8;
    let told = vec((any::<bool>(), prop::bool::weighted(0.7)), 16);
    (host, 0..ADDRESSES as u8, told).prop_map(move |(host, address, told)| {
        let chapters = [
            Event::Start { host },
            Event::Esp { host, old: false },
            Event::ChangeHome { host, wanted: Wanted::Draining },
            Event::Start { host },
            Event::Pause,
            Event::Informational { host, old: true },
            Event::Esp { host, old: false },
            Event::RekeyIke { host },
            Event::Informational { host, old: false },
            Event::Rebind { host },
            Event::Esp { host, old: false },
            Event::BackendInformational { host, old: true },
            Event::Move { host, address },
            Event::Informational { host, old: true },
            Event::Esp { host, old: false },
            Event::BackendEsp { host, old: false },
        ];
        let mut events = Vec::new();
        for (chapter, (is_told, settles)) in chapters.into_iter().zip(told) {
            let is_change = matches!(chapter, Event::ChangeHome { .. });
            // The first start is where all begins.
            if (events.is_empty() || is_told) && (changes || !is_change) {
                events.push(chapter);
                if settles {
                    events.push(Event::Settle);
                }
            }
        }
        events
    })
}

fn event(changes: u32) -> impl Strategy<Value = Event> {
    let host = || 0..HOSTS as u8;
    let address = || 0..ADDRESSES as u8;
    let fate = || {
        prop_oneof![
            8 => Just(Fate::Arrives),
            3 => Just(Fate::Doubled),
            1 => Just(Fate::LostBefore),
            1 => Just(Fate::LostBehind),
        ]
    };
    let stray = select(vec![
        Stray::Start,
        Stray::Start,
        Stray::Ike,
        Stray::Esp,
        Stray::Response,
        Stray::Keepalive,
        Stray::Noise,
    ]);
    let wanted =
        select(vec![Wanted::Active, Wanted::Active, Wanted::Draining, Wanted::Draining, Wanted::Down]);
    let of_client = prop_oneof![
        8 => host().prop_map(|host| Event::Start { host }),
        2 => host().prop_map(|host| Event::Retransmit { host }),
        6 => (host(), prop::bool::weighted(0.3)).prop_map(|(host, old)| Event::Esp { host, old }),
        1 => host().prop_map(|host| Event::Keepalive { host }),
        1 => host().prop_map(|host| Event::Ping { host }),
        3 => (host(), any::<bool>()).prop_map(|(host, old)| Event::Informational { host, old }),
        2 => host().prop_map(|host| Event::RekeyChild { host }),
        2 => host().prop_map(|host| Event::RekeyIke { host }),
        2 => (host(), address()).prop_map(|(host, address)| Event::Move { host, address }),
        2 => host().prop_map(|host| Event::Rebind { host }),
    ];
    let of_backend = prop_oneof![
        3 => (host(), prop::bool::weighted(0.3)).prop_map(|(host, old)| Event::BackendEsp { host, old }),
        2 => (host(), any::<bool>()).prop_map(|(host, old)| Event::BackendInformational { host, old }),
        1 => host().prop_map(|host| Event::BackendRekeyChild { host }),
        2 => host().prop_map(|host| Event::BackendRekeyIke { host }),
        1 => host().prop_map(|host| Event::IcmpError { host }),
    ];
    let of_others = prop_oneof![
        3 => (stray, address(), any::<bool>())
            .prop_map(|(stray, address, near)| Event::Stray { stray, address, near }),
        1 => address().prop_map(|address| Event::Reroute { address }),
        1 => any::<bool>().prop_map(|on| Event::Cookies { on }),
        3 => Just(Event::Pause),
    ];
    let of_network = prop_oneof![
        4 => (any::<u8>(), fate()).prop_map(|(which, fate)| Event::Up { which, fate }),
        3 => (any::<u8>(), fate()).prop_map(|(which, fate)| Event::Down { which, fate }),
        5 => Just(Event::Settle),
    ];
    let change = prop_oneof![
        (0..BACKENDS as u8, wanted.clone()).prop_map(|(backend, wanted)| Event::Change { backend, wanted }),
        (host(), wanted).prop_map(|(host, wanted)| Event::ChangeHome { host, wanted }),
    ];
    prop_oneof![
        25 => of_client,
        8 => of_backend,
        6 => of_others,
        22 => of_network,
        changes => change,
    ]
}

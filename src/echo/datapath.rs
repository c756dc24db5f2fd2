//! The responder's program and maps: loaded anew, or opened from where an instance has pinned them.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use libbpf_rs::MapHandle;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use macaddr::MacAddr6;
use thiserror::Error;

use super::skeleton::{EchoSkelBuilder, types};
use crate::kernel::counters::Count;
use crate::kernel::object::{self, ObjectError};
use crate::kernel::pins::{Instance, PinError};
use crate::kernel::program::Program;
use crate::kernel::table::{Table, TableError};
use crate::kernel::value::address_words;

/// The layout of pinned maps that this build makes and understands.
pub const LAYOUT: u32 = types::echo_limits::ECHO_LAYOUT.0;

/// How many addresses there can be, broadcast addresses among them.
pub const ADDRESSES_MAX: usize = types::echo_limits::ECHO_ADDRESSES_MAX.0 as usize;

/// The longest ICMP message, in bytes, whose checksum is checked.
pub const CHECKED_MAX: usize = types::echo_limits::ECHO_CHECKED_MAX.0 as usize;

/// How long a packet may look at a view that has just been replaced.
const SETTLE: Duration = Duration::from_millis(20);

/// How many factors are tried until all addresses have a place.
const FACTORS: u64 = 10_000;

crate::map_values! { types::counter, types::echo_views }

impl From<types::counter> for Count {
    fn from(counter: types::counter) -> Self {
        Self { packets: counter.packets, bytes: counter.bytes }
    }
}

/// What is decided when the program is loaded, and stays as it is until it is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether requests for every host's address are answered.
    pub any: bool,
    /// Time from one request of a source to its next, of which a second's worth may come at once; zero is no limit.
    pub source_interval: Duration,
}

/// What the program knows of its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub mac: MacAddr6,
    /// Of IPv4 replies.
    pub ttl: u8,
    /// Of IPv6 replies.
    pub hop_limit: u8,
    /// Requests for these are answered.
    pub addresses: Vec<IpAddr>,
    /// Requests for and from these are not, though `any` may be set.
    pub broadcasts: Vec<Ipv4Addr>,
}

/// Why there is no program, or why it cannot be told about its interface.
#[derive(Debug, Error)]
pub enum DatapathError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(
        "{given} addresses, broadcast addresses among them, are more than the {ADDRESSES_MAX} there can be; --any answers for all without a list"
    )]
    TooMany { given: usize },
}

/// Names, as they are pinned, of all maps that are kept.
pub const MAPS: [&str; 3] = ["sources", "verdicts", "views"];

/// The map of the variable `views`, as libbpf names it.
const VIEWS: &str = ".data.views";

/// The maps that user space reads or writes, the same for a loaded and for a pinned instance.
#[derive(Debug)]
pub struct Maps {
    pub verdicts: Table<u32, types::counter>,
    pub views: Table<u32, types::echo_views>,
}

impl Maps {
    fn gather(handle: impl Fn(&str) -> Result<MapHandle, DatapathError>) -> Result<Self, DatapathError> {
        Ok(Self { verdicts: Table::new(handle("verdicts")?)?, views: Table::new(handle("views")?)? })
    }

    /// Opens the maps of an instance of this layout.
    ///
    /// # Errors
    ///
    /// Where a pin is missing or no map.
    pub fn open(instance: &Instance) -> Result<Self, DatapathError> {
        Self::gather(|name| {
            Ok(MapHandle::from_pinned_path(instance.map_pin(name))
                .map_err(|error| instance.corrupt(error))?)
        })
    }

    /// Tells the program about its interface. Each packet meets the old view or the new one, nothing in between.
    ///
    /// # Errors
    ///
    /// `TooMany`, and what the kernel says about the maps.
    pub fn set_view(&self, view: &View) -> Result<(), DatapathError> {
        let mut all = self.views.get(&0)?.expect("an array has all its entries");
        let next = 1 - all.current.min(1);
        // Both views are written, but the one that counts with what it holds: nobody sees that.
        all.views[next as usize] = encode(view)?;
        self.views.set(&0, &all)?;
        all.current = next;
        self.views.set(&0, &all)?;
        // The next call writes the view that is left here.
        thread::sleep(SETTLE);
        Ok(())
    }
}

/// The view as the program looks addresses up in it.
fn encode(view: &View) -> Result<types::echo_view, DatapathError> {
    let hosts = view.addresses.iter().filter(|address| is_host(**address));
    let ours = hosts.map(|address| (*address, types::echo_address_kind::ECHO_OURS));
    let broadcasts = view
        .broadcasts
        .iter()
        .map(|address| (IpAddr::from(*address), types::echo_address_kind::ECHO_BROADCAST));
    let entries: Vec<_> = ours.chain(broadcasts).collect();
    let too_many = DatapathError::TooMany { given: entries.len() };
    if entries.len() > ADDRESSES_MAX {
        return Err(too_many);
    }
    let mut encoded = types::echo_view {
        mac: view.mac.into_array(),
        ttl: view.ttl,
        hop_limit: view.hop_limit,
        ..Default::default()
    };
    let buckets = (0..FACTORS).find_map(|number| {
        // Odd, so that a product has all the differences of its factors.
        encoded.factor = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        place(&entries, encoded.factor)
    });
    encoded.buckets = buckets.ok_or(too_many)?;
    Ok(encoded)
}

/// Whether an address can be one host's on a wire: what the program asks of addresses that it does not know (bpf/echo.bpf.c, `is_host`).
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] != 0 && !v4.is_loopback() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast() && v6.to_ipv4_mapped().is_none()
        }
    }
}

type Buckets = [types::echo_bucket; types::echo_limits::ECHO_BUCKETS.0 as usize];

/// The addresses in their buckets, `None` where one is full. The hash is the one of `kind_of` in bpf/echo.bpf.c.
fn place(entries: &[(IpAddr, types::echo_address_kind)], factor: u64) -> Option<Buckets> {
    let mut buckets: Buckets = [types::echo_bucket::default(); types::echo_limits::ECHO_BUCKETS.0 as usize];
    for (address, kind) in entries {
        let words = address_words(*address);
        let first = words[0].wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
        let hash = (first ^ words[1]).wrapping_mul(factor);
        let slots = &mut buckets[(hash >> types::echo_limits::ECHO_BUCKET_SHIFT.0) as usize].slots;
        let same = slots.iter().position(|slot| slot.kind != 0 && slot.address.words == words);
        // An address that was given twice is what it was first.
        if same.is_none() {
            let free = slots.iter().position(|slot| slot.kind == 0)?;
            slots[free] =
                types::echo_slot { address: types::address { words }, kind: kind.0, ..Default::default() };
        }
    }
    Some(buckets)
}

/// The loaded program with its maps. Nothing is attached or pinned.
#[derive(Debug)]
pub struct Datapath {
    pub program: Program,
    pub maps: Maps,
    pub(super) handles: object::Maps,
}

impl Datapath {
    /// Loads the program with new maps, or on those of `old`. Until it has a view, it answers nothing.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses it, and where maps are not what this build needs.
    pub fn load(settings: &Settings, old: Option<&Instance>) -> Result<Self, DatapathError> {
        object::check_btf()?;
        let load_error = |source| object::load_error(source, "Linux 6.1 and newer take them");
        let mut storage = MaybeUninit::uninit();
        let mut open = EchoSkelBuilder::default().open(&mut storage).map_err(load_error)?;
        let config =
            &mut open.maps.rodata_data.as_deref_mut().expect("the object has read-only data").echo_config;
        config.any = settings.any.into();
        // Of times that are added to this one, none may go beyond 64 bits.
        config.source_interval =
            settings.source_interval.as_nanos().try_into().unwrap_or(u64::MAX).min(u64::MAX / 4);
        if let Some(instance) = old {
            for mut map in open.open_object_mut().maps_mut() {
                if let Some(name) = pin_name(map.name()) {
                    object::reuse(instance, name, &mut map)?;
                }
            }
        }
        let skeleton = open.load().map_err(load_error)?;
        let handles = object::Maps::of(skeleton.object(), pin_name)?;
        Ok(Self {
            program: object::program(&skeleton.progs.lb_echo)?,
            maps: Maps::gather(|name| Ok(handles.handle(name)?))?,
            handles,
        })
    }
}

fn pin_name(map: &OsStr) -> Option<&'static str> {
    // Of variables in a section of their own, whose name no pin may have for its dots.
    if map == VIEWS { Some("views") } else { MAPS.into_iter().find(|name| map == *name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_of_the_object_is_pinned() {
        let mut storage = MaybeUninit::uninit();
        let open = EchoSkelBuilder::default().open(&mut storage).unwrap();
        let object = open.open_object().maps();
        let mut names: Vec<&str> = object.filter_map(|map| pin_name(map.name())).collect();
        names.sort_unstable();
        assert_eq!(names, MAPS);
        let kept = |name: &str| name == VIEWS || !name.contains('.');
        let all = open.open_object().maps();
        assert_eq!(all.filter(|map| kept(&map.name().to_string_lossy())).count(), MAPS.len());
    }

    fn view(addresses: Vec<IpAddr>) -> View {
        View { mac: MacAddr6::nil(), ttl: 64, hop_limit: 64, addresses, broadcasts: Vec::new() }
    }

    /// Networks as an interface with very many addresses has them: counted up in one place, and in two at once.
    #[test]
    fn as_many_addresses_as_there_can_be_have_a_place() {
        let v4 = |number: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number));
        let v6 =
            |number: u128, step: u128| IpAddr::from(((0xfd00_u128 << 112) | (number * step)).to_be_bytes());
        for addresses in [
            (0..256).map(v4).collect::<Vec<_>>(),
            (0..256).map(|number| v4(number * 256)).collect(),
            (0..256).map(|number| v6(number, 1)).collect(),
            (0..256).map(|number| v6(number, 1 << 64)).collect(),
            (0..256).map(|number| v6(number, 1 << 64 | 1)).collect(),
        ] {
            assert!(encode(&view(addresses.clone())).is_ok(), "{addresses:?}");
        }
    }

    #[test]
    fn more_addresses_than_there_can_be_are_an_error() {
        let addresses = (0..257).map(|number| Ipv4Addr::from_bits(0x0a00_0000 + number).into()).collect();
        assert!(matches!(encode(&view(addresses)), Err(DatapathError::TooMany { given: 257 })));
    }

    #[test]
    fn an_address_that_is_given_twice_has_one_place() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let encoded = encode(&view(vec![address; 100])).unwrap();
        assert_eq!(
            encoded.buckets.iter().flat_map(|bucket| bucket.slots).filter(|slot| slot.kind != 0).count(),
            1
        );
    }
}

//! Captures: the frames of a pcap or pcapng file, one after the other.
//!
//! Both byte orders and every resolution of time are read, Ethernet alone is taken. A file that is broken or ends within a
//! packet gives all packets before that, then an error that names the packet.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pcap_parser::pcapng::{Block, EnhancedPacketBlock, InterfaceDescriptionBlock, SimplePacketBlock};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{LegacyPcapBlock, Linktype, PcapBlockOwned, PcapError, PcapHeader, create_reader};
use thiserror::Error;

/// What is read at once. Most records are much smaller.
const BUFFER: usize = 64 * 1024;

/// No record is larger, so that a file whose lengths are nonsense does not take the machine's memory. Captures of
/// network interfaces have packets of 256 KiB at most (libpcap's `MAXIMUM_SNAPLEN`).
const RECORD_MAX: usize = 16 * 1024 * 1024;

/// The bits of a pcap header's link type that say which it is; the others are about frame check sequences
/// (draft-ietf-opsawg-pcap, section 4).
const LINKTYPE_MASK: i32 = 0x03ff_ffff;

/// Why a capture gives no further packets.
#[derive(Debug, Error)]
pub enum CaptureError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is empty; a capture begins with a header", path.display())]
    Empty { path: PathBuf },
    #[error("{} is no capture, neither pcap nor pcapng; `tcpdump -w FILE` writes one", path.display())]
    Foreign { path: PathBuf },
    #[error("{} ends within its header", path.display())]
    ShortHeader { path: PathBuf },
    #[error(
        "{} is a capture of link type {linktype}{packet}, and only Ethernet (1) has what the balancer sees{hint}",
        path.display()
    )]
    LinkType { path: PathBuf, linktype: String, packet: String, hint: &'static str },
    #[error("{} is cut short: it ends within packet {number}", path.display())]
    Short { path: PathBuf, number: u64 },
    #[error("{} is broken at packet {number}: {why}", path.display())]
    Broken { path: PathBuf, number: u64, why: String },
}

/// A packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Counted from 1, as Wireshark does.
    pub number: u64,
    /// `None` where the file does not say.
    pub time: Option<SystemTime>,
    /// As much of the frame as was captured.
    pub frame: Vec<u8>,
    /// How long the frame was.
    pub length: usize,
}

/// A capture that is being read.
pub struct Capture {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator + Send>,
    failure: Failure,
    interfaces: Vec<Port>,
    number: u64,
    ended: bool,
}

/// Where packets were captured: the one interface of a pcap file, or one of a pcapng file's section.
struct Port {
    linktype: Linktype,
    snaplen: usize,
    clock: Clock,
}

/// How an interface says what time it is.
#[derive(Clone, Copy)]
struct Clock {
    /// As pcapng's option `if_tsresol`: a power of ten, or with the highest bit of two, of which a unit is a fraction.
    resolution: u8,
    /// Seconds to add.
    offset: i64,
}

/// What the system has said about reading. The parser tells only that it has said something.
type Failure = Arc<Mutex<Option<io::Error>>>;

/// A file that fills each buffer as far as it goes, as a pipe by itself does not.
struct Source {
    file: File,
    failure: Failure,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Err(kind.into());
                }
            }
        }
        Ok(filled)
    }
}

impl Capture {
    /// Opens a capture and reads its header. `-` is standard input.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read or is no capture of Ethernet frames. Of a pcapng file, which may have several
    /// interfaces, the link type is judged with each packet.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Io { path: path.into(), source };
        let failure = Failure::default();
        let file = File::open(if path == Path::new("-") { Path::new("/dev/stdin") } else { path });
        let source = Source { file: file.map_err(failed)?, failure: failure.clone() };
        let reader = create_reader(BUFFER, source).map_err(|error| match error {
            PcapError::ReadError => failed(take(&failure)),
            PcapError::Eof => CaptureError::Empty { path: path.into() },
            PcapError::Incomplete(_) => CaptureError::ShortHeader { path: path.into() },
            _ => CaptureError::Foreign { path: path.into() },
        })?;
        let mut capture =
            Self { path: path.into(), reader, failure, interfaces: Vec::new(), number: 0, ended: false };
        let header = match capture.reader.next() {
            Ok((size, PcapBlockOwned::LegacyHeader(header))) => Some((size, header)),
            // The first block of pcapng: next_record() reads it again.
            _ => None,
        };
        if let Some((size, header)) = header {
            let port = Port::of_pcap(&header);
            capture.check_linktype(&port, None)?;
            capture.interfaces.push(port);
            capture.reader.consume(size);
        }
        Ok(capture)
    }

    /// The next packet, or `None` at the end.
    fn next_packet(&mut self) -> Result<Option<Captured>, CaptureError> {
        loop {
            match self.next_record()? {
                None => return Ok(None),
                Some(Record::Other) => {}
                Some(Record::Packet { interface, time, frame, length }) => {
                    self.number += 1;
                    let port = self.interfaces.get(interface).ok_or_else(|| {
                        self.broken(
                            self.number,
                            format!("it is of interface {interface}, which is not described"),
                        )
                    })?;
                    self.check_linktype(port, Some(self.number))?;
                    let time = time.and_then(|time| port.clock.read(time));
                    return Ok(Some(Captured {
                        number: self.number,
                        time,
                        length: length.max(frame.len()),
                        frame,
                    }));
                }
            }
        }
    }

    /// The next record of the file, whatever it is.
    fn next_record(&mut self) -> Result<Option<Record>, CaptureError> {
        let number = self.number + 1;
        let mut room = BUFFER;
        loop {
            // What is to be done about it, so that the block's borrow of the reader ends first.
            let wanted = match self.reader.next() {
                Ok((size, block)) => {
                    let record = Record::of(block, &mut self.interfaces);
                    self.reader.consume(size);
                    return Ok(Some(record));
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => Wanted::More,
                Err(PcapError::BufferTooSmall) => Wanted::Room,
                Err(PcapError::UnexpectedEof) => Wanted::Nothing,
                Err(PcapError::ReadError) => return Err(self.io()),
                Err(error) => Wanted::Stop(reason(&error)),
            };
            match wanted {
                Wanted::Stop(why) => return Err(self.broken(number, why)),
                // The parser calls the end of the file by two names.
                Wanted::Nothing if self.reader.data().is_empty() => return Ok(None),
                Wanted::Nothing => return Err(CaptureError::Short { path: self.path.clone(), number }),
                Wanted::Room if room >= RECORD_MAX => {
                    return Err(self.broken(
                        number,
                        format!("it claims to be larger than {} MiB", RECORD_MAX / 1024 / 1024),
                    ));
                }
                Wanted::Room => {
                    room *= 2;
                    self.reader.grow(room);
                }
                Wanted::More => {}
            }
            if self.reader.refill().is_err() {
                return Err(self.io());
            }
        }
    }

    fn check_linktype(&self, port: &Port, packet: Option<u64>) -> Result<(), CaptureError> {
        if port.linktype == Linktype::ETHERNET {
            return Ok(());
        }
        let hint = match port.linktype {
            Linktype::LINUX_SLL | Linktype::LINUX_SLL2 => {
                ": capture on one interface, as `tcpdump -i eth1 -w FILE` does, instead of `any`"
            }
            Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => {
                ": capture at the balancer's interface, not inside a tunnel"
            }
            _ => "",
        };
        Err(CaptureError::LinkType {
            path: self.path.clone(),
            linktype: name(port.linktype),
            packet: packet.map(|number| format!(" at packet {number}")).unwrap_or_default(),
            hint,
        })
    }

    fn broken(&self, number: u64, why: String) -> CaptureError {
        CaptureError::Broken { path: self.path.clone(), number, why }
    }

    fn io(&self) -> CaptureError {
        CaptureError::Io { path: self.path.clone(), source: take(&self.failure) }
    }
}

impl Iterator for Capture {
    type Item = Result<Captured, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_packet().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// What the parser needs before it can go on.
enum Wanted {
    More,
    Room,
    /// The file has ended.
    Nothing,
    /// There is nothing to be done.
    Stop(String),
}

/// A record of a capture, with what there is of a packet in it.
enum Record {
    Packet { interface: usize, time: Option<Time>, frame: Vec<u8>, length: usize },
    Other,
}

/// A time as the file has it.
enum Time {
    /// Of pcap: seconds, and a fraction in units of the interface's clock.
    Split(u32, u32),
    /// Of pcapng: units of the interface's clock.
    Units(u64),
}

impl Record {
    fn of(block: PcapBlockOwned<'_>, interfaces: &mut Vec<Port>) -> Self {
        match block {
            PcapBlockOwned::Legacy(block) => Self::of_pcap(&block),
            PcapBlockOwned::NG(Block::EnhancedPacket(block)) => Self::of_enhanced(&block),
            PcapBlockOwned::NG(Block::SimplePacket(block)) => Self::of_simple(&block, interfaces),
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                interfaces.clear();
                Self::Other
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                interfaces.push(Port::of_pcapng(&block));
                Self::Other
            }
            _ => Self::Other,
        }
    }

    fn of_pcap(block: &LegacyPcapBlock<'_>) -> Self {
        Self::Packet {
            interface: 0,
            time: Some(Time::Split(block.ts_sec, block.ts_usec)),
            frame: block.data.to_vec(),
            length: block.origlen as usize,
        }
    }

    fn of_enhanced(block: &EnhancedPacketBlock<'_>) -> Self {
        Self::Packet {
            interface: block.if_id as usize,
            time: Some(Time::Units(u64::from(block.ts_high) << 32 | u64::from(block.ts_low))),
            frame: block.packet_data().to_vec(),
            length: block.origlen as usize,
        }
    }

    fn of_simple(block: &SimplePacketBlock<'_>, interfaces: &[Port]) -> Self {
        let mut frame = block.packet_data().to_vec();
        // What is behind that is padding.
        frame.truncate(interfaces.first().map_or(usize::MAX, |port| port.snaplen));
        Self::Packet { interface: 0, time: None, frame, length: block.origlen as usize }
    }
}

impl Port {
    fn of_pcap(header: &PcapHeader) -> Self {
        let resolution = if header.is_nanosecond_precision() { 9 } else { 6 };
        Self {
            linktype: Linktype(header.network.0 & LINKTYPE_MASK),
            // Asked only for pcapng's simple packets, which do not say how much of them there is.
            snaplen: usize::MAX,
            clock: Clock { resolution, offset: 0 },
        }
    }

    fn of_pcapng(block: &InterfaceDescriptionBlock<'_>) -> Self {
        Self {
            linktype: block.linktype,
            // Zero means that there is no limit.
            snaplen: if block.snaplen == 0 { usize::MAX } else { block.snaplen as usize },
            clock: Clock { resolution: block.if_tsresol, offset: block.if_tsoffset },
        }
    }
}

impl Clock {
    /// `None` where the time is none that can be.
    fn read(self, time: Time) -> Option<SystemTime> {
        let exponent = u32::from(self.resolution & 0x7f);
        let units = if self.resolution & 0x80 == 0 {
            10u128.checked_pow(exponent)?
        } else {
            1u128.checked_shl(exponent)?
        };
        let (seconds, fraction) = match time {
            Time::Split(seconds, fraction) => (i64::from(seconds), u128::from(fraction)),
            Time::Units(count) => {
                let count = u128::from(count);
                (i64::try_from(count / units).ok()?, count % units)
            }
        };
        let seconds = u64::try_from(seconds.checked_add(self.offset)?).ok()?;
        let nanoseconds = u64::try_from(fraction.checked_mul(1_000_000_000)? / units).ok()?;
        let since = Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds))?;
        SystemTime::UNIX_EPOCH.checked_add(since)
    }
}

/// The number of a link type, and its name where it is one that people meet.
fn name(linktype: Linktype) -> String {
    let number = linktype.0;
    let known = match linktype {
        Linktype::NULL | Linktype::LOOP => "BSD loopback",
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => "raw IP",
        Linktype::LINUX_SLL => "Linux cooked, SLL",
        Linktype::LINUX_SLL2 => "Linux cooked, SLL2",
        Linktype::NFLOG => "NFLOG",
        Linktype(105 | 127) => "IEEE 802.11",
        _ => return number.to_string(),
    };
    format!("{number} ({known})")
}

/// What the parser has to say, without the bytes that it says it of.
fn reason(error: &PcapError<&[u8]>) -> String {
    match error {
        PcapError::NomError(..) | PcapError::OwnedNomError(..) => "its lengths contradict each other".into(),
        other => other.to_string(),
    }
}

fn take(failure: &Failure) -> io::Error {
    let said = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    said.unwrap_or_else(|| io::ErrorKind::Other.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A file of a test, gone when this is dropped.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new(bytes: &[u8]) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("lb-capture-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, bytes).unwrap();
            Self(path)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// All packets of a file, and the error that it ends with.
    fn read(bytes: &[u8]) -> (Vec<Captured>, Option<String>) {
        let file = Temporary::new(bytes);
        let mut packets = Vec::new();
        match Capture::open(&file.0) {
            Err(error) => return (packets, Some(error.to_string())),
            Ok(capture) => {
                for packet in capture {
                    match packet {
                        Ok(packet) => packets.push(packet),
                        Err(error) => return (packets, Some(error.to_string())),
                    }
                }
            }
        }
        (packets, None)
    }

    #[derive(Clone, Copy)]
    struct Order {
        big: bool,
    }

    impl Order {
        const BOTH: [Self; 2] = [Self { big: false }, Self { big: true }];

        fn u16(self, value: u16) -> [u8; 2] {
            if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
        }

        fn u32(self, value: u32) -> [u8; 4] {
            if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
        }

        fn pcap(self, magic: u32, linktype: u32, packets: &[(u32, u32, &[u8], u32)]) -> Vec<u8> {
            let mut bytes = [self.u32(magic), self.u32(0x0002_0004), [0; 4], [0; 4]].concat();
            bytes[4..8].copy_from_slice(&[self.u16(2), self.u16(4)].concat());
            bytes.extend(self.u32(65535));
            bytes.extend(self.u32(linktype));
            for (seconds, fraction, data, length) in packets {
                for word in [*seconds, *fraction, data.len() as u32, *length] {
                    bytes.extend(self.u32(word));
                }
                bytes.extend(*data);
            }
            bytes
        }

        fn block(self, kind: u32, content: &[u8]) -> Vec<u8> {
            let length = self.u32(12 + content.len() as u32);
            [&self.u32(kind)[..], &length, content, &length].concat()
        }

        fn section(self) -> Vec<u8> {
            let content = [&self.u32(0x1a2b_3c4d)[..], &self.u16(1), &self.u16(0), &[0xff; 8]].concat();
            self.block(0x0a0d_0d0a, &content)
        }

        fn interface(self, linktype: u16, snaplen: u32, resolution: Option<u8>) -> Vec<u8> {
            let mut content = [&self.u16(linktype)[..], &[0; 2], &self.u32(snaplen)].concat();
            if let Some(resolution) = resolution {
                content.extend([&self.u16(9)[..], &self.u16(1), &[resolution, 0, 0, 0], &[0; 4]].concat());
            }
            self.block(1, &content)
        }

        fn enhanced(self, interface: u32, time: u64, data: &[u8], length: u32) -> Vec<u8> {
            let words = [interface, (time >> 32) as u32, time as u32, data.len() as u32, length];
            let mut content: Vec<u8> = words.iter().flat_map(|word| self.u32(*word)).collect();
            content.extend(data);
            content.resize(content.len().next_multiple_of(4), 0);
            self.block(6, &content)
        }

        fn simple(self, data: &[u8], length: u32) -> Vec<u8> {
            let mut content = [&self.u32(length)[..], data].concat();
            content.resize(content.len().next_multiple_of(4), 0);
            self.block(3, &content)
        }
    }

    const MICROSECONDS: u32 = 0xa1b2_c3d4;
    const NANOSECONDS: u32 = 0xa1b2_3c4d;

    fn at(seconds: u64, nanoseconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
    }

    #[test]
    fn pcap_is_read_in_both_orders_and_resolutions() {
        for order in Order::BOTH {
            for (magic, fraction, nanoseconds) in [(MICROSECONDS, 250, 250_000), (NANOSECONDS, 250, 250)] {
                let bytes =
                    order.pcap(magic, 1, &[(7, fraction, &[1; 60], 60), (8, fraction, &[2; 20], 1500)]);
                let (packets, error) = read(&bytes);
                assert_eq!(error, None);
                assert_eq!(packets.len(), 2);
                assert_eq!(
                    packets[0],
                    Captured { number: 1, time: at(7, nanoseconds), frame: vec![1; 60], length: 60 }
                );
                assert_eq!(
                    packets[1],
                    Captured { number: 2, time: at(8, nanoseconds), frame: vec![2; 20], length: 1500 }
                );
            }
        }
    }

    #[test]
    fn pcapng_is_read_in_both_orders_with_each_interfaces_clock() {
        for order in Order::BOTH {
            let bytes = [
                order.section(),
                order.interface(1, 0, None),
                order.interface(1, 10, Some(9)),
                order.interface(1, 0, Some(0x8a)),
                order.enhanced(0, 7_000_250, &[1; 61], 61),
                order.enhanced(1, 7_000_000_250, &[2; 10], 100),
                order.enhanced(2, 7 * 1024 + 512, &[3; 60], 60),
                order.block(5, &[0; 12]),
                order.simple(&[4; 59], 59),
                order.section(),
                order.interface(1, 10, None),
                order.simple(&[5; 10], 100),
            ];
            let (packets, error) = read(&bytes.concat());
            assert_eq!(error, None);
            let seen: Vec<_> =
                packets.iter().map(|packet| (packet.time, packet.frame.len(), packet.length)).collect();
            assert_eq!(
                seen,
                [
                    (at(7, 250_000), 61, 61),
                    (at(7, 250), 10, 100),
                    (at(7, 500_000_000), 60, 60),
                    (None, 59, 59),
                    (None, 10, 100)
                ]
            );
        }
    }

    #[test]
    fn a_section_in_the_other_order_has_its_own_interfaces() {
        let [little, big] = Order::BOTH;
        let mut bytes =
            [little.section(), little.interface(1, 0, None), little.enhanced(0, 1, &[1; 60], 60)].concat();
        bytes.extend([big.section(), big.interface(1, 0, None), big.enhanced(0, 1, &[2; 60], 60)].concat());
        let (packets, error) = read(&bytes);
        assert_eq!((packets.len(), error), (2, None));
        bytes.extend([little.section(), little.enhanced(0, 1, &[1; 60], 60)].concat());
        let (packets, error) = read(&bytes);
        assert_eq!(packets.len(), 2);
        assert!(error.as_ref().is_some_and(|error| error.contains("at packet 3")), "{error:?}");
    }

    /// Whatever is missing at the end, every packet before it is read, and the error names the one that is cut.
    #[test]
    fn a_file_that_ends_too_early_gives_what_is_whole() {
        for order in Order::BOTH {
            let pcap = order.pcap(MICROSECONDS, 1, &[(1, 0, &[1; 60], 60), (2, 0, &[2; 60], 60)]);
            let one = order.pcap(MICROSECONDS, 1, &[(1, 0, &[1; 60], 60)]).len();
            let ng = [
                order.section(),
                order.interface(1, 0, None),
                order.enhanced(0, 1, &[1; 60], 60),
                order.enhanced(0, 2, &[2; 60], 60),
            ];
            let ng_one = ng[..3].concat().len();
            for (bytes, header, one) in
                [(pcap, 24, one), (ng.concat(), ng[0].len(), ng_one)].map(|(b, h, o)| (b, h, o))
            {
                for length in 1..bytes.len() {
                    let (packets, error) = read(&bytes[..length]);
                    let whole = usize::from(length >= one);
                    assert_eq!(packets.len(), whole, "{length} of {} bytes: {error:?}", bytes.len());
                    if length > one {
                        assert!(error.as_ref().is_some_and(|e| e.contains("within packet 2")), "{error:?}");
                    } else if length < header {
                        assert!(error.is_some(), "{length}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_capture_without_packets_is_whole() {
        let order = Order { big: false };
        assert_eq!(read(&order.pcap(MICROSECONDS, 1, &[])), (Vec::new(), None));
        assert_eq!(read(&order.section()), (Vec::new(), None));
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let error = |bytes: &[u8]| read(bytes).1.unwrap();
        assert!(error(b"").contains("is empty"));
        assert!(error(b"GET / HTTP/1.1\r\n\r\n, and more than a header").contains("is no capture"));
        assert!(error(&MICROSECONDS.to_le_bytes()).contains("within its header"));
        let folder = Capture::open(&std::env::temp_dir()).err().unwrap().to_string();
        assert!(folder.contains("cannot read"), "{folder}");
        let missing = Capture::open(Path::new("/no/such.pcap")).err().unwrap().to_string();
        assert!(missing.contains("/no/such.pcap"), "{missing}");
    }

    #[test]
    fn other_link_types_are_refused_by_name() {
        let order = Order { big: false };
        let (packets, error) = read(&order.pcap(MICROSECONDS, 113, &[(1, 0, &[1; 60], 60)]));
        assert_eq!(packets, []);
        let error = error.unwrap();
        assert!(error.contains("113 (Linux cooked, SLL)") && error.contains("tcpdump -i eth1"), "{error}");
        let bytes = [
            order.section(),
            order.interface(1, 0, None),
            order.interface(101, 0, None),
            order.enhanced(0, 1, &[1; 60], 60),
            order.enhanced(1, 1, &[1; 60], 60),
        ];
        let (packets, error) = read(&bytes.concat());
        assert_eq!(packets.len(), 1);
        assert!(error.as_ref().is_some_and(|e| e.contains("101 (raw IP) at packet 2")), "{error:?}");
        // Frame check sequences are no matter.
        assert_eq!(read(&order.pcap(MICROSECONDS, 0x1400_0001, &[(1, 0, &[1; 60], 60)])).1, None);
    }

    #[test]
    fn lengths_that_are_nonsense_are_an_error() {
        let order = Order { big: false };
        let mut bytes = order.pcap(MICROSECONDS, 1, &[(1, 0, &[1; 60], 60), (2, 0, &[2; 60], 60)]);
        let second = bytes.len() - 76;
        bytes[second + 8..second + 12].copy_from_slice(&0xffff_ffffu32.to_le_bytes());
        let (packets, error) = read(&bytes);
        assert_eq!(packets.len(), 1);
        assert!(error.as_ref().is_some_and(|e| e.contains("packet 2")), "{error:?}");

        let mut block = order.enhanced(0, 1, &[1; 60], 60);
        block[20..24].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
        let bytes = [order.section(), order.interface(1, 0, None), block].concat();
        let (packets, error) = read(&bytes);
        assert_eq!(packets, []);
        assert!(error.as_ref().is_some_and(|e| e.contains("packet 1")), "{error:?}");
    }

    #[test]
    fn packets_larger_than_the_buffer_are_read() {
        let order = Order { big: false };
        let large = vec![1; 3 * BUFFER];
        let (packets, error) =
            read(&order.pcap(MICROSECONDS, 1, &[(1, 0, &large, large.len() as u32), (2, 0, &[2; 60], 60)]));
        assert_eq!(error, None);
        assert_eq!(packets.iter().map(|packet| packet.frame.len()).collect::<Vec<_>>(), [3 * BUFFER, 60]);
    }
}

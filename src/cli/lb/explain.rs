//! `lb explain`: what would become of packets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use macaddr::MacAddr6;

use super::{Failure, Global, Name, Usage, instance};
use crate::lb::explain::capture::{Capture, Captured};
use crate::lb::explain::frame::{Content, IKE, Message, NAT, Ports, Tuple};
use crate::lb::explain::{Explained, Explainer, Origin, Side, Subject};
use crate::output;

/// The source MAC of a packet that is made here and whose sender is not named: no station's.
const SOMEBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];

/// How many rows make a table. A capture may have millions of packets.
const ROWS: usize = 5000;

#[derive(Debug, Args)]
pub struct Explain {
    #[command(flatten)]
    name: Name,
    /// A capture of Ethernet frames, pcap or pcapng, as `tcpdump -i eth1 -w FILE` writes it; - for standard input
    #[arg(value_name = "FILE.pcap", required_unless_present = "proto", conflicts_with = "proto")]
    file: Option<PathBuf>,
    /// Which side of the balancer the packets come from; auto: what has a backend's MAC or a VIP as its source is from
    /// the backend side
    #[arg(long, value_enum, default_value = "auto")]
    side: SideChoice,
    /// The interface that the packets come in on, instead of --side [default: the first of the clients', or the one of the
    /// backend that has the source MAC]
    #[arg(long, value_name = "IF")]
    dev: Option<String>,
    #[command(flatten)]
    tuple: TupleArgs,
}

/// Where packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SideChoice {
    Auto,
    Client,
    Backend,
}

/// A packet to be made, instead of a capture.
#[derive(Debug, Args)]
#[command(next_help_heading = "One packet instead of a capture")]
struct TupleArgs {
    /// What the packet is
    #[arg(long, value_enum, requires = "src", requires = "dst")]
    proto: Option<Proto>,
    /// Its source address
    #[arg(long, value_name = "ADDR", requires = "proto")]
    src: Option<IpAddr>,
    /// Its destination address
    #[arg(long, value_name = "ADDR", requires = "proto")]
    dst: Option<IpAddr>,
    /// Its source port; of udp, ike and keepalive [default: the destination port]
    #[arg(long, value_name = "PORT", requires = "proto")]
    sport: Option<u16>,
    /// Its destination port; of udp, ike and keepalive [default: 4500; of ike without --nat 500]
    #[arg(long, value_name = "PORT", requires = "proto")]
    dport: Option<u16>,
    /// The SPI of esp and ah; with udp, that of ESP in UDP
    #[arg(long, value_name = "SPI", value_parser = spi32, requires = "proto")]
    spi: Option<u32>,
    /// The initiator's SPI of an IKE SA
    #[arg(long, value_name = "SPI", value_parser = spi64, requires = "proto")]
    ispi: Option<u64>,
    /// The responder's SPI of an IKE SA [default: 0, which makes a request of it that starts the SA]
    #[arg(long, value_name = "SPI", value_parser = hexadecimal, requires = "proto")]
    rspi: Option<u64>,
    /// Which side began the IKE SA [default: client]
    #[arg(long, value_enum, requires = "proto")]
    initiator: Option<Began>,
    /// IKE on port 4500, behind the four zero bytes that tell it from ESP
    #[arg(long, requires = "proto")]
    nat: bool,
    /// An answer: of ike a response, of icmp an echo reply
    #[arg(long, requires = "proto")]
    response: bool,
    /// The backend that sends the packet: gives it that backend's MAC and interface
    #[arg(long, value_name = "B", requires = "proto", conflicts_with_all = ["dev", "side"])]
    backend: Option<String>,
}

/// Who began an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Began {
    Client,
    Backend,
}

/// What packet to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proto {
    /// ESP right behind the IP header
    Esp,
    /// AH
    Ah,
    /// UDP; with --spi, ESP in UDP
    Udp,
    /// A message of IKEv2
    Ike,
    /// A ping
    Icmp,
    /// What keeps a NAT's mapping alive: one byte of UDP
    Keepalive,
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{error}; write an SPI as 0x and hexadecimal digits"))
}

fn spi64(text: &str) -> Result<u64, String> {
    match hexadecimal(text)? {
        0 => Err("no end chooses the SPI 0".into()),
        spi => Ok(spi),
    }
}

fn spi32(text: &str) -> Result<u32, String> {
    spi64(text)?.try_into().map_err(|_| "an SPI of ESP or AH has 32 bits, eight hexadecimal digits".into())
}

impl TupleArgs {
    /// What is in the packet, from a backend if `from_backend`.
    fn content(&self, proto: Proto, from_backend: bool) -> Result<Content, Usage> {
        use Proto::{Ah, Esp, Icmp, Ike, Keepalive, Udp};
        let takes: [(&str, bool, &[Proto]); 8] = [
            ("--sport", self.sport.is_some(), &[Udp, Ike, Keepalive]),
            ("--dport", self.dport.is_some(), &[Udp, Ike, Keepalive]),
            ("--spi", self.spi.is_some(), &[Esp, Ah, Udp]),
            ("--ispi", self.ispi.is_some(), &[Ike]),
            ("--rspi", self.rspi.is_some(), &[Ike]),
            ("--initiator", self.initiator.is_some(), &[Ike]),
            ("--nat", self.nat, &[Ike]),
            ("--response", self.response, &[Ike, Icmp]),
        ];
        let name = |proto: &Proto| {
            proto.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        if let Some((option, _, of)) = takes.iter().find(|(_, given, of)| *given && !of.contains(&proto)) {
            let of: Vec<String> = of.iter().map(name).collect();
            return Err(Usage(format!(
                "--proto {} takes no {option}, which is for {}",
                name(&proto),
                of.join(", ")
            )));
        }
        let missing = |option: &str| Usage(format!("--proto {} needs {option}", name(&proto)));
        // A client sends to the well-known port, a backend from it; both may be that at both ends.
        let known = if proto == Ike && !self.nat { IKE } else { NAT };
        let ports = Ports {
            source: self.sport.or(if from_backend { None } else { self.dport }).unwrap_or(known),
            destination: self.dport.or(if from_backend { self.sport } else { None }).unwrap_or(known),
        };
        Ok(match proto {
            Esp => Content::Esp { spi: self.spi.ok_or_else(|| missing("--spi"))? },
            Ah => Content::Ah { spi: self.spi.ok_or_else(|| missing("--spi"))? },
            Udp => match self.spi {
                Some(spi) => Content::EspInUdp { ports, spi },
                None if [ports.source, ports.destination].iter().any(|port| [IKE, NAT].contains(port)) => {
                    return Err(Usage(
                        "--proto udp on port 500 or 4500 needs --spi, which makes it ESP in UDP; IKE is --proto ike, with --nat on port 4500".into(),
                    ));
                }
                None => Content::Udp { ports },
            },
            Ike => Content::Ike {
                ports,
                message: Message {
                    initiator_spi: self.ispi.ok_or_else(|| missing("--ispi"))?,
                    responder_spi: self.rspi.unwrap_or(0),
                    response: self.response,
                    from_initiator: (self.initiator == Some(Began::Backend)) == from_backend,
                },
            },
            Icmp => Content::Echo { reply: self.response },
            Keepalive => Content::Keepalive { ports },
        })
    }

    /// The packet that is meant; `None` where a capture is.
    fn tuple(&self, from_backend: bool) -> Result<Option<Tuple>, Usage> {
        let (Some(proto), Some(source), Some(destination)) = (self.proto, self.src, self.dst) else {
            return Ok(None);
        };
        let tuple = Tuple {
            from: SOMEBODY.into(),
            source: source.to_canonical(),
            destination: destination.to_canonical(),
            content: self.content(proto, from_backend)?,
        };
        // Before anything is asked of the kernel: a packet of two families is wrong usage.
        tuple.frame().map_err(Usage)?;
        Ok(Some(tuple))
    }
}

impl Explain {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        // What can be wrong without the instance comes first.
        self.tuple.tuple(false)?;
        let capture = self.file.as_deref().map(Capture::open).transpose()?;
        let instance = instance(global, &self.name)?;
        let mut explainer = Explainer::new(&global.root(), &instance)?;
        let mut from = Origin {
            side: match self.side {
                SideChoice::Auto => None,
                SideChoice::Client => Some(Side::Client),
                SideChoice::Backend => Some(Side::Backend),
            },
            dev: self.dev.clone(),
        };
        let mut rows = Rows::new(global);
        if let Some(capture) = capture {
            for packet in capture {
                let explained = packet
                    .map_err(Failure::from)
                    .and_then(|packet| Ok(explainer.explain(packet.into(), &from)?));
                match explained {
                    Ok(explained) => rows.add(explained),
                    Err(error) => {
                        // What came before is whole.
                        rows.print();
                        return Err(error);
                    }
                }
            }
            if rows.seen == 0 {
                global.done("there are no packets in it");
            }
        } else {
            let mac = self.tuple.backend.as_deref().map(|backend| explainer.backend(backend)).transpose()?;
            if let Some((_, dev)) = &mac {
                from.dev = Some(dev.clone());
            }
            let subject = self.subject(&explainer, &from, mac.map(|(mac, _)| mac))?;
            rows.add(explainer.explain(subject, &from)?);
        }
        rows.print();
        Ok(())
    }

    /// The packet that the options say.
    fn subject(
        &self,
        explainer: &Explainer,
        from: &Origin,
        mac: Option<MacAddr6>,
    ) -> Result<Subject, Failure> {
        let src = self.tuple.src.map(|src| src.to_canonical());
        let from_backend = explainer.side_of(from, src)? == Side::Backend;
        let mut tuple = self.tuple.tuple(from_backend)?.ok_or_else(|| Usage("--proto is missing".into()))?;
        if let Some(mac) = mac.filter(|mac| !mac.is_nil()) {
            tuple.from = mac;
        }
        let frame = tuple.frame().map_err(Usage)?;
        Ok(Subject { number: 1, time: None, length: frame.len(), frame })
    }
}

impl From<Captured> for Subject {
    fn from(packet: Captured) -> Self {
        Self { number: packet.number, time: packet.time, frame: packet.frame, length: packet.length }
    }
}

/// What is printed: a line of JSON for each packet at once, or tables.
struct Rows<'a> {
    global: &'a Global,
    rows: Vec<Explained>,
    /// When the first packet was captured.
    start: Option<SystemTime>,
    seen: usize,
}

impl<'a> Rows<'a> {
    fn new(global: &'a Global) -> Self {
        Self { global, rows: Vec::new(), start: None, seen: 0 }
    }

    fn add(&mut self, explained: Explained) {
        self.seen += 1;
        if self.global.json {
            output::json(&explained);
            return;
        }
        self.start = self.start.or(explained.time);
        self.rows.push(explained);
        if self.rows.len() == ROWS {
            self.print();
        }
    }

    fn print(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let start = self.start;
        let rows = std::mem::take(&mut self.rows).into_iter().map(|explained| {
            vec![
                explained.number.to_string(),
                since(start, explained.time),
                explained.side.to_string(),
                explained.packet.to_string(),
                explained.verdict.unwrap_or("-").into(),
                explained.backend.unwrap_or_else(|| "-".into()),
                match explained.note {
                    Some(note) => format!("{} ({note})", explained.detail),
                    None => explained.detail,
                },
                explained.table.unwrap_or("-").into(),
            ]
        });
        let header = ["NO", "TIME", "FROM", "PACKET", "VERDICT", "BACKEND", "BECAUSE", "TABLE"];
        output::line(output::table(&header, &[0, 1], rows));
    }
}

/// Seconds from the first packet on, which a clock that was set back may have put behind this one.
fn since(start: Option<SystemTime>, time: Option<SystemTime>) -> String {
    let (Some(start), Some(time)) = (start, time) else { return "-".into() };
    match time.duration_since(start) {
        Ok(passed) => format!("{:.6}", passed.as_secs_f64()),
        Err(back) => format!("-{:.6}", back.duration().as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        explain: Explain,
    }

    fn parse(line: &str) -> Result<TupleArgs, clap::Error> {
        let words = std::iter::once("explain").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.explain.tuple)
    }

    fn content(line: &str, from_backend: bool) -> Result<Content, String> {
        let arguments = parse(&format!("--src 192.0.2.1 --dst 192.0.0.2 {line}")).unwrap();
        arguments.tuple(from_backend).map(|tuple| tuple.unwrap().content).map_err(|error| error.0)
    }

    #[test]
    fn options_make_the_packet_that_they_say() {
        let ports = |source, destination| Ports { source, destination };
        let message =
            Message { initiator_spi: 0x12, responder_spi: 0, response: false, from_initiator: true };
        for (line, wanted) in [
            ("--proto esp --spi 0xc0ffee00", Content::Esp { spi: 0xc0ff_ee00 }),
            ("--proto ah --spi 4096", Content::Ah { spi: 4096 }),
            (
                "--proto udp --sport 61000 --spi 0x1000",
                Content::EspInUdp { ports: ports(61000, 4500), spi: 0x1000 },
            ),
            ("--proto udp --dport 53", Content::Udp { ports: ports(53, 53) }),
            ("--proto keepalive", Content::Keepalive { ports: ports(4500, 4500) }),
            ("--proto icmp --response", Content::Echo { reply: true }),
            ("--proto ike --ispi 0x12", Content::Ike { ports: ports(500, 500), message }),
            (
                "--proto ike --ispi 0x12 --rspi 0x34 --nat --initiator backend --response",
                Content::Ike {
                    ports: ports(4500, 4500),
                    message: Message {
                        responder_spi: 0x34,
                        response: true,
                        from_initiator: false,
                        ..message
                    },
                },
            ),
        ] {
            assert_eq!(content(line, false), Ok(wanted), "{line}");
        }
        let back = content("--proto ike --ispi 0x12 --rspi 0x34 --dport 61000 --nat --response", true);
        let Ok(Content::Ike { ports: back, message }) = back else { panic!("{back:?}") };
        assert_eq!(back, ports(4500, 61000));
        assert!(!message.from_initiator, "the client began it");
    }

    #[test]
    fn options_of_other_packets_are_refused() {
        for (line, words) in [
            ("--proto esp", "needs --spi"),
            ("--proto ike", "needs --ispi"),
            ("--proto esp --spi 1 --dport 500", "--proto esp takes no --dport"),
            ("--proto icmp --spi 1", "takes no --spi"),
            ("--proto udp --response", "takes no --response, which is for ike, icmp"),
            ("--proto udp", "--proto ike"),
        ] {
            let error = content(line, false).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        let mixed = parse("--proto icmp --src 192.0.2.1 --dst 2001:db8::1").unwrap();
        assert!(mixed.tuple(false).unwrap_err().0.contains("two families"));
    }

    #[test]
    fn a_packet_or_a_capture_is_needed_and_not_both() {
        for line in [
            "",
            "--proto esp",
            "--src 192.0.2.1",
            "FILE --proto icmp --src 192.0.2.1 --dst 192.0.0.2",
            "FILE --spi 1",
            "--proto esp --src 192.0.2.1 --dst 192.0.0.2 --spi 0",
            "--proto esp --src 192.0.2.1 --dst 192.0.0.2 --spi 0x100000000",
            "--proto esp --src 192.0.2.1 --dst 192.0.0.2 --spi c0ffee",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("FILE").unwrap().tuple(false).unwrap().is_none());
    }

    #[test]
    fn times_count_from_the_first_packet() {
        let start = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(10);
        assert_eq!(since(Some(start), Some(start + std::time::Duration::from_micros(1500))), "0.001500");
        assert_eq!(since(Some(start), Some(SystemTime::UNIX_EPOCH)), "-10.000000");
        assert_eq!(since(None, None), "-");
    }
}

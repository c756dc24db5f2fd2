//! `bpf/include/checksum.h` in the kernel, against checksums that `etherparse` computes from all the data.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use etherparse::UdpHeader;
use etherparse::checksum::Sum16BitWords;
use lb::kernel::program::{Program, RunOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

mod checksum {
    include!(concat!(env!("OUT_DIR"), "/checksum.skel.rs"));
}

const XDP_PASS: u32 = 2;
const CASES: usize = 20_000;

/// What the kernel makes of a sum, and of a checksum under which a word changes. Words are as they lie in a packet.
struct Answer {
    folded: u16,
    finished: u16,
    replaced: u16,
    replaced_udp: u16,
}

/// The loaded functions.
struct Kernel(Program);

impl Kernel {
    #[track_caller]
    fn load() -> Self {
        let mut storage = MaybeUninit::uninit();
        let open = checksum::ChecksumSkelBuilder::default().open(&mut storage).expect("the program opens");
        let skeleton = open.load().expect("the program loads");
        Self(Program::from_fd(skeleton.progs.checksum.as_fd()).expect("a handle"))
    }

    #[track_caller]
    fn ask(&self, sum: u32, check: u16, old: u16, new: u16) -> Answer {
        let question = [&sum.to_ne_bytes()[..], &check.to_ne_bytes(), &old.to_ne_bytes(), &new.to_ne_bytes()];
        let packet = [&question.concat()[..], &[0; 8]].concat();
        let run = self.0.run(&packet, RunOptions::default()).expect("the program runs");
        assert_eq!(run.action, XDP_PASS);
        let answer = |number: usize| {
            u16::from_ne_bytes(
                *run.packet[10 + 2 * number..].first_chunk().expect("four answers of two bytes"),
            )
        };
        Answer { folded: answer(0), finished: answer(1), replaced: answer(2), replaced_udp: answer(3) }
    }
}

/// Random bytes that are the same in each run (SplitMix64), so that a failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// An even number of bytes, as many as a packet may have.
    fn bytes(&mut self) -> Vec<u8> {
        let words = 2 + self.next() as usize % 750;
        (0..words).flat_map(|_| (self.next() as u16).to_ne_bytes()).collect()
    }
}

fn word(data: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(*data[at..].first_chunk().expect("an even number of bytes"))
}

fn set_word(data: &mut [u8], at: usize, word: u16) {
    data[at..at + 2].copy_from_slice(&word.to_ne_bytes());
}

/// The checksum of data, as it lies in a packet.
fn sum_of(data: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(data).ones_complement()
}

/// The checksum of a UDP datagram over IPv4, as it lies in a packet.
fn udp_sum_of(payload: &[u8]) -> u16 {
    let header =
        UdpHeader { source_port: 500, destination_port: 4500, length: 8 + payload.len() as u16, checksum: 0 };
    let sum = header.calc_checksum_ipv4_raw([192, 0, 0, 1], [192, 0, 0, 2], payload);
    sum.expect("a datagram of lawful length").to_be()
}

#[test]
fn root_sums_are_folded_and_finished() {
    let kernel = Kernel::load();
    let mut random = Random(1);
    for case in 0..CASES {
        let data = random.bytes();
        let sum: u32 = data.chunks_exact(2).map(|chunk| u32::from(word(chunk, 0))).sum();
        let answer = kernel.ask(sum, 0, 0, 0);
        assert_eq!(answer.finished, sum_of(&data), "case {case}: {sum:#x}");
        assert_eq!(answer.folded, !sum_of(&data), "case {case}: {sum:#x}");
    }
}

#[test]
fn root_every_carry_of_32_bits_is_folded() {
    let kernel = Kernel::load();
    let mut random = Random(2);
    let edges = [
        0,
        1,
        0xfffe,
        0xffff,
        0x1_0000,
        0x1_fffe,
        0x1_ffff,
        0xfffe_0001,
        0xffff_0000,
        u32::MAX - 1,
        u32::MAX,
    ];
    for sum in edges.into_iter().chain((0..CASES).map(|_| random.next() as u32)) {
        let mut folded = sum;
        while folded > 0xffff {
            folded = (folded & 0xffff) + (folded >> 16);
        }
        let answer = kernel.ask(sum, 0, 0, 0);
        assert_eq!((u32::from(answer.folded), u32::from(!answer.finished)), (folded, folded), "{sum:#x}");
    }
}

#[test]
fn root_a_checksum_follows_a_word_that_changes() {
    let kernel = Kernel::load();
    let mut random = Random(3);
    for case in 0..CASES {
        let mut data = random.bytes();
        let check = sum_of(&data);
        let at = random.next() as usize % (data.len() / 2) * 2;
        let old = word(&data, at);
        // Words whose one's complement sums meet their two zeros, among random ones.
        let new = [0, 0xffff, old, !old, random.next() as u16][case % 5];
        set_word(&mut data, at, new);
        let answer = kernel.ask(0, check, old, new);
        assert_eq!(
            answer.replaced,
            sum_of(&data),
            "case {case}: {old:#06x} to {new:#06x} under {check:#06x}"
        );
    }
}

#[test]
fn root_a_udp_checksum_follows_a_word_that_changes() {
    let kernel = Kernel::load();
    let mut random = Random(4);
    let mut zeros = 0;
    for case in 0..CASES {
        let mut payload = random.bytes();
        let at = random.next() as usize % (payload.len() / 2) * 2;
        let check = udp_sum_of(&payload);
        let old = word(&payload, at);
        let mut new = random.next() as u16;
        if case % 4 == 0 {
            // The word that makes the sum all ones, whose complement is 0.
            set_word(&mut payload, at, 0);
            new = udp_sum_of(&payload);
        }
        set_word(&mut payload, at, new);
        let expected = udp_sum_of(&payload);
        zeros += usize::from(expected == 0xffff);
        let answer = kernel.ask(0, check, old, new);
        assert_eq!(answer.replaced_udp, expected, "case {case}: {old:#06x} to {new:#06x} under {check:#06x}");
    }
    assert!(zeros >= CASES / 4, "a computed 0 was to be met, and sent as 0xffff");
}

#[test]
fn root_no_udp_checksum_stays_none() {
    let kernel = Kernel::load();
    let mut random = Random(5);
    for _ in 0..1000 {
        let (old, new) = (random.next() as u16, random.next() as u16);
        assert_eq!(kernel.ask(0, 0, old, new).replaced_udp, 0, "{old:#06x} to {new:#06x}");
    }
}

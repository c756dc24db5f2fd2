//! The program that lets everything pass.

use std::cell::RefCell;

use lb::kernel::counters::{self, Count};
use lb::kernel::program::{Run, RunOptions};
use lb::kernel::table::Table;
use lb::pass;
use lb::pass::skeleton::types;

use crate::common::packet::{Ping, arp, tcp, udp};
use crate::fixture::{XDP_PASS, families};
use crate::reply::TAGS;

#[test]
fn root_everything_passes_untouched_and_is_counted_whole() {
    let loaded = pass::load(None).expect("the program loads");
    let handle = loaded.maps.handle("verdicts").expect("a handle");
    let verdicts: Table<u32, types::counter> = Table::new(handle).expect("a map of counters");
    let frames = RefCell::new(vec![vec![0; 14], vec![0xff; 60], arp(1, [0xff; 6])]);
    families(|request| {
        let mut frames = frames.borrow_mut();
        for tags in TAGS {
            for bytes in [0, 56, 1472, 3500, 9000] {
                let payload = vec![0x5a; bytes];
                frames.push(Ping { tags: tags.to_vec(), payload, ..request.clone() }.frame());
            }
        }
        frames.push(request.frame()[..30].to_vec());
        frames.push(tcp(request.source, request.destination, 80));
        frames.push(udp((request.source, 1), (request.destination, 2), &[1; 8000]));
    });
    let mut expected = Count::default();
    for frame in frames.into_inner() {
        let Run { action, packet, .. } =
            loaded.program.run(&frame, RunOptions::default()).expect("the program runs");
        assert_eq!(action, XDP_PASS);
        assert!(packet == frame, "{} bytes are no longer what they were", frame.len());
        expected = expected + Count { packets: 1, bytes: frame.len() as u64 };
        assert_eq!(counters::read(&verdicts, 0).expect("counters can be read"), expected);
    }
}

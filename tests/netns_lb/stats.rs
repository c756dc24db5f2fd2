//! What `lb stats` shows of SPI labels.

use crate::common::packet::{self, Ike};
use crate::lab::{BACKENDS, Family, Network, PATIENCE, eventually};
use crate::packets::{Tap, Taps};
use crate::traffic::{answer, destination};

#[test]
fn root_labels_are_counted_where_spis_have_them() {
    let network = Network::new();
    network.attach("--quiet");
    assert!(network.lab.lb("stats --json").json().get("labels").is_none());
    assert!(!network.lab.lb("stats").done().contains("SPI LABEL"));
    network.lab.lb("detach").done();

    network.attach("--spi-shard 4");
    let counts = || {
        let labels = &network.lab.lb("stats --json").json()["labels"];
        ["disagree", "unknown"].map(|name| labels[name]["packets"].as_u64().unwrap())
    };
    assert_eq!(counts(), [0, 0]);
    let labels: Vec<u64> =
        network.lab.backends("label").iter().map(|label| label.as_u64().expect("each has one")).collect();
    let free = (1..16).find(|label| !labels.contains(label)).expect("fifteen labels are more than four");

    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    let client = Family::V4.client(1);
    // Packets whose label is no backend's, and one whose label is.
    destination(&tap, &taps, &packet::esp(client, (free as u32) << 28 | 1));
    assert_eq!(counts(), [0, 1]);
    assert_eq!(destination(&tap, &taps, &packet::esp(client, (labels[2] as u32) << 28 | 1)), 2);
    assert_eq!(counts(), [0, 1]);

    // A backend chooses an SPI of its own label, then one of another's.
    let start = packet::ike(client, Ike::init(0x11));
    let backend = destination(&tap, &taps, &start);
    let answers = [labels[backend], labels[(backend + 1) % BACKENDS]]
        .map(|label| answer(backend, packet::ike_back(client, Ike::init_response(0x11, label << 60 | 0x22))));
    taps.0[backend].send(&answers[0]);
    taps.0[backend].send(&answers[1]);
    assert!(eventually(PATIENCE, || counts() == [1, 1]), "{:?}", counts());
    let documents = network.lab.lb("stats --interval 10ms --count 1 --json").json();
    assert!(documents["labels"]["disagree"]["packets_per_s"].is_number(), "{documents}");
    let table = network.lab.lb("stats").done();
    assert!(table.contains("SPI LABEL") && table.contains("disagree"), "{table}");
}

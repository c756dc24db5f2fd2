//! Frames in words, for tests that fail.

use std::fmt::Write;

use etherparse::LaxPacketHeaders;

/// How many bytes of a frame are shown; what decides about it lies at its beginning.
const SHOWN: usize = 160;

/// The headers of a frame as far as they can be read, and its first bytes.
pub fn show(frame: &[u8]) -> String {
    let mut text = format!("{} bytes\n", frame.len());
    match LaxPacketHeaders::from_ethernet(frame) {
        Err(error) => push(&mut text, &error),
        Ok(headers) => {
            headers.link.iter().for_each(|link| push(&mut text, link));
            headers.link_exts.iter().for_each(|tag| push(&mut text, tag));
            headers.net.iter().for_each(|net| push(&mut text, net));
            headers.transport.iter().for_each(|transport| push(&mut text, transport));
            headers.stop_err.iter().for_each(|(error, layer)| push(&mut text, &(layer, error)));
        }
    }
    for (row, bytes) in frame[..frame.len().min(SHOWN)].chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(text, "    {:04x}  {}", row * 16, hex.join(" "));
    }
    text
}

fn push(text: &mut String, part: &impl std::fmt::Debug) {
    let _ = writeln!(text, "    {part:?}");
}

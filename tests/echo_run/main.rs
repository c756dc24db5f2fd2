//! The echo responder and the program that passes, frame by frame, on the loaded programs (BPF_PROG_TEST_RUN).
//!
//! A fixture is one frame and all that is to come of it: verdict, XDP action, the bytes that leave, and every counter. What a
//! reply has to be is computed by `etherparse` from all its data.

mod address;
mod buffers;
mod checksum;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod header;
mod pass;
mod rate;
mod reply;
mod view;

//! What test files share. Each file uses a part of it.
#![allow(dead_code)]

pub mod datapath;
pub mod decode;
pub mod namespace;
pub mod packet;
pub mod topology;

//! What test files share. Each file uses a part of it.
#![allow(dead_code)]

pub mod command;
pub mod datapath;
pub mod decode;
pub mod folder;
pub mod kernel;
pub mod namespace;
pub mod packet;
pub mod tap;
pub mod topology;

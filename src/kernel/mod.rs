//! All dealings with the BPF side of the kernel and its networking, and all unsafe code. Knows no datapath.

pub mod bpffs;
pub mod counters;
pub mod interface;
pub mod neighbour;
mod netlink;
pub mod netns;
pub mod pins;
pub mod program;
pub mod snapshot;
pub mod table;
pub mod value;
mod veth;
pub mod xdp;

//! All dealings with the BPF side of the kernel and its networking, and all unsafe code. Knows no datapath.

pub mod addresses;
pub mod bpffs;
pub mod counters;
pub mod detach;
pub mod interface;
pub mod neighbour;
mod netlink;
pub mod netns;
pub mod object;
pub mod pins;
pub mod program;
pub mod record;
pub mod snapshot;
pub mod table;
pub mod value;
pub mod veth;
pub mod xdp;

pub mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/lb.skel.rs"));
}

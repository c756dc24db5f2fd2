//! Topology files of the lab, as containerlab and scripts/lab read them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub struct Document {
    pub prefix: String,
    pub topology: Topology,
}

#[derive(Deserialize)]
pub struct Topology {
    pub groups: BTreeMap<String, Group>,
    pub nodes: BTreeMap<String, Node>,
    pub links: Vec<Link>,
}

#[derive(Deserialize)]
pub struct Group {
    pub binds: Vec<String>,
    pub exec: Vec<String>,
}

#[derive(Deserialize)]
pub struct Node {
    pub kind: String,
    pub group: String,
    #[serde(default)]
    pub env: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
pub struct Link {
    #[serde(rename = "type")]
    pub kind: String,
    pub mtu: u32,
    pub endpoints: [Endpoint; 2],
}

#[derive(Deserialize)]
pub struct Endpoint {
    pub node: String,
    pub interface: String,
    pub mac: Option<String>,
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads a topology with the environment variable that it may be given.
#[track_caller]
pub fn topology(file: &str, esp: &str) -> Document {
    let text = std::fs::read_to_string(repository().join(file)).unwrap();
    let text = text.replace("${LB_LAB_ESP:=userspace}", esp);
    serde_norway::from_str(&text).expect("the lab is what containerlab understands")
}

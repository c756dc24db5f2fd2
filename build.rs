//! Compiles every datapath under `bpf/` and generates its Rust skeleton into `OUT_DIR`.
//!
//! `bpf/<name>.bpf.c` becomes `<name>.skel.rs`. A warning of the C compiler fails the build.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");

    let vmlinux = root.join("vmlinux").join(&arch);
    assert!(
        vmlinux.join("vmlinux.h").exists(),
        "no kernel types for {arch}: scripts/vmlinux generates vmlinux/{arch}/vmlinux.h"
    );

    for folder in ["bpf", "bpf/testing"] {
        for source in datapaths(&root.join(folder)) {
            compile(&source, &root.join("bpf/include"), &vmlinux, &out);
        }
    }
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=vmlinux/{arch}/vmlinux.h");
}

fn datapaths(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder entry can be read").path())
        .filter(|path| path.to_string_lossy().ends_with(".bpf.c"))
        .collect();
    found.sort();
    found
}

fn compile(source: &Path, include: &Path, vmlinux: &Path, out: &Path) {
    let file = source.file_name().expect("a datapath has a file name").to_string_lossy();
    let name = file.trim_end_matches(".bpf.c");
    let mut arguments: Vec<OsString> = ["-Wall", "-Werror", "-mcpu=v3"].map(OsString::from).into();
    for folder in [include, vmlinux] {
        arguments.push("-I".into());
        arguments.push(folder.into());
    }
    if let Err(error) = SkeletonBuilder::new()
        .source(source)
        .clang_args(arguments)
        .build_and_generate(out.join(format!("{name}.skel.rs")))
    {
        eprintln!("{error:#}");
        panic!(
            "cannot build {}: the compiler's words are above; `scripts/setup build` installs clang",
            source.display()
        );
    }
}

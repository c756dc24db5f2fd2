//! Folders of tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::namespace::run;

/// A folder for files, named after a pin root, gone when this is dropped.
pub struct TemporaryFolder(pub PathBuf);

impl TemporaryFolder {
    #[track_caller]
    pub fn new(root: &Path) -> Self {
        let name = root.file_name().expect("a root has a name");
        let path = std::env::temp_dir().join(name);
        run(Command::new("mkdir").args(["-m", "0755"]).arg(&path));
        Self(path)
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All paths below a folder.
pub fn listing(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| [vec![path.clone()], listing(&path)].concat()).collect()
}

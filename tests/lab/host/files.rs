//! Files as a host sees them.

use anyhow::Result;

use super::Host;
use crate::must;

impl Host {
    /// Writes a file, aside first and then renamed into place. `/run` is the node's own; all else is the machine's.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write_file(&self, path: &str, contents: impl Into<Vec<u8>>) {
        must(self.try_write_file(path, contents));
    }

    /// Writes a file, aside first and then renamed into place.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn try_write_file(&self, path: &str, contents: impl Into<Vec<u8>>) -> Result<()> {
        self.tool("put").arg(path).stdin(contents).try_run().map(drop)
    }

    /// Writes a file that can be run, aside first and then renamed into place.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn try_write_program(&self, path: &str, contents: impl Into<Vec<u8>>) -> Result<()> {
        self.tool("put").args([path, "--mode", "755"]).stdin(contents).try_run().map(drop)
    }

    /// Reads a file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read_file(&self, path: &str) -> String {
        self.tool("cat").arg(path).run()
    }

    /// Whether a file can be read.
    #[must_use]
    #[track_caller]
    pub fn has_file(&self, path: &str) -> bool {
        self.tool("cat").arg(path).output().success()
    }

    /// Puts a symbolic link in the place of whatever has this path, by a rename.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn symlink(&self, target: &str, path: &str) {
        self.tool("symlink").arg(target).arg(path).run();
    }

    /// Deletes a file.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn remove_file(&self, path: &str) {
        self.tool("remove").arg(path).run();
    }

    /// Permission bits in octal and the owner's uid of a file, as in "600 0".
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    #[track_caller]
    pub fn file_mode(&self, path: &str) -> String {
        self.tool("mode").arg(path).run().trim().to_owned()
    }
}

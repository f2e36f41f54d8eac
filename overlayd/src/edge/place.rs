//! Puts a whole file in its place: who looks sees the old contents or the new ones, never a part.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// End of a temporary file's name. No runtime takes it for a network configuration.
const TEMPORARY: &str = ".new";

/// Writes a temporary file in the same directory and renames it, so that a running program is not disturbed either
/// (`ETXTBSY`) and a runtime that watches the directory sees it come. One writer at a time: what an earlier one left
/// half-written is replaced.
///
/// # Errors
/// If a step fails; nothing is left behind then but what stood there before.
pub fn place(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path)?;
    remove(&temporary)?;
    let placed = write(&temporary, contents, mode).and_then(|()| fs::rename(&temporary, path));
    if placed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    placed?;
    // The name must be on disk too. Some file systems do not sync directories; the file is in its place all the same.
    let directory = path.parent().map(File::open);
    let _ = directory.map(|opened| opened.and_then(|directory| directory.sync_all()));
    Ok(())
}

/// Removes the file and what a writer that was killed left of it.
///
/// # Errors
/// If one of them is there and stays.
pub fn displace(path: &Path) -> io::Result<()> {
    remove(&temporary(path)?)?;
    remove(path)
}

fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents)?;
    // The process' umask does not count.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!(".{}{TEMPORARY}", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_file_appears_with_its_mode_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("10-overlay.conflist");
        fs::write(directory.path().join(".10-overlay.conflist.new"), "half").unwrap();
        for contents in ["one", "two, longer", ""] {
            place(&path, contents.as_bytes(), 0o755).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
            assert_eq!(names(directory.path()), ["10-overlay.conflist"]);
        }
    }

    #[test]
    fn a_reader_never_sees_a_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let contents = [vec![b'a'; 1 << 20], vec![b'b'; 1 << 20]];
        place(&path, &contents[0], 0o644).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..20 {
                    place(&path, &contents[round % 2], 0o644).unwrap();
                }
            });
            while !writer.is_finished() {
                let seen = fs::read(&path).unwrap();
                assert!(contents.contains(&seen), "{} bytes", seen.len());
            }
        });
    }

    #[test]
    fn a_program_that_runs_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sleep");
        fs::copy("/bin/sleep", &path).unwrap();
        let mut running = std::process::Command::new(&path).arg("60").spawn().unwrap();
        assert_eq!(fs::write(&path, "new").unwrap_err().kind(), io::ErrorKind::ExecutableFileBusy);
        let placed = place(&path, b"new", 0o755);
        running.kill().unwrap();
        running.wait().unwrap();
        placed.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("taken/x")).unwrap();
        assert!(place(&directory.path().join("taken"), b"x", 0o644).is_err());
        assert_eq!(names(directory.path()), ["taken"]);
        assert!(place(&directory.path().join("absent/file"), b"x", 0o644).is_err());
    }

    #[test]
    fn displacing_can_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        place(&path, b"x", 0o644).unwrap();
        fs::write(directory.path().join(".file.new"), "half").unwrap();
        displace(&path).unwrap();
        displace(&path).unwrap();
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }
}

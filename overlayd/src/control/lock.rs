//! One daemon per node: an flock on `<run_dir>/lock`.
//!
//! A second opener of a multi-queue TUN and of a `SO_REUSEPORT` port succeeds in silence, so nothing but this
//! lock keeps two daemons apart. The kernel frees it with the process, however that ends.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Name in the run directory.
pub const LOCK_FILE: &str = "lock";

/// How long a starting daemon waits for the one before it, which ends within 2 s of SIGTERM.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The held lock; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Creates the run directory (0700) and takes the lock, waiting at most `wait` for its holder.
///
/// # Errors
/// Names the holder's process id when the wait was in vain.
pub fn acquire(run_dir: &Path, wait: Duration) -> Result<Lock> {
    let path = run_dir.join(LOCK_FILE);
    let deadline = Instant::now() + wait;
    loop {
        make_private(run_dir)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut file = wait_for(open(&path)?, &path, left)?;
        // Whoever held it may have cleaned up: then this is the lock of a file that nobody else will open.
        if is_at(&file, &path) {
            write_pid(&mut file).with_context(|| format!("write our process id into {}", path.display()))?;
            return Ok(Lock { _file: file });
        }
    }
}

fn make_private(run_dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("create the run directory {}", run_dir.display()))?;
    std::fs::set_permissions(run_dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("restrict the run directory {} to its owner", run_dir.display()))
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(present)) => identity(held) == identity(present),
        _ => false,
    }
}

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No daemon runs.
    Nobody,
    /// A daemon with this process id, as far as it can be read.
    Process(Option<u32>),
    /// The lock cannot be looked at, and why.
    Unknown(String),
}

/// Looks who holds the lock, without taking it.
#[must_use]
pub fn holder(run_dir: &Path) -> Holder {
    let path = run_dir.join(LOCK_FILE);
    let unknown = |error: std::io::Error| Holder::Unknown(format!("{}: {error}", path.display()));
    match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Holder::Nobody,
        Err(error) => unknown(error),
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => Holder::Nobody,
            Err(TryLockError::WouldBlock) => Holder::Process(read_pid(&path)),
            Err(TryLockError::Error(error)) => unknown(error),
        },
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open the lock {}", path.display()))
}

/// Waits in a thread of its own: flock has no time limit. On a time-out that thread stays until the process ends.
fn wait_for(file: File, path: &Path, wait: Duration) -> Result<File> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    if !wait.is_zero() {
        let pid = read_pid(path).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        tracing::info!(holder = pid, "waiting for another daemon on this node to end");
    }
    let (done, result) = mpsc::channel();
    let waiter = move || {
        let outcome = file.lock().map(|()| file);
        let _ = done.send(outcome);
    };
    std::thread::Builder::new().name("lock".to_owned()).spawn(waiter).context("start the lock's thread")?;
    match result.recv_timeout(wait) {
        Ok(outcome) => outcome.with_context(|| format!("lock {}", path.display())),
        Err(_) => bail!("{}", held(path)),
    }
}

fn held(path: &Path) -> String {
    match read_pid(path) {
        Some(pid) => format!("another overlayd (process {pid}) holds {}: stop it first", path.display()),
        None => format!("another overlayd holds {}: stop it first", path.display()),
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// The files that the daemon makes in the run directory, the lock last.
#[must_use]
pub fn run_files(run_dir: &Path) -> Vec<PathBuf> {
    [crate::edge::cni::SOCKET_FILE, crate::edge::admin::SOCKET_FILE, "nodes.yaml", LOCK_FILE]
        .iter()
        .map(|name| run_dir.join(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_refused_with_the_process_id_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = acquire(directory.path(), Duration::ZERO).unwrap();
        let error = acquire(directory.path(), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert_eq!(holder(directory.path()), Holder::Process(Some(std::process::id())));
        drop(first);
    }

    #[test]
    fn a_waiting_one_gets_it_when_the_holder_ends() {
        let directory = tempfile::tempdir().unwrap();
        let first = acquire(directory.path(), Duration::ZERO).unwrap();
        let path = directory.path().to_owned();
        let second = std::thread::spawn(move || acquire(&path, Duration::from_secs(10)));
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn one_that_waited_for_a_cleaned_up_directory_gets_the_new_lock() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let first = acquire(&run_dir, Duration::ZERO).unwrap();
        let waiting = open(&run_dir.join(LOCK_FILE)).unwrap();
        std::fs::remove_dir_all(&run_dir).unwrap();
        drop(first);
        waiting.lock().unwrap();
        assert!(!is_at(&waiting, &run_dir.join(LOCK_FILE)));
        let _second = acquire(&run_dir, Duration::ZERO).unwrap();
        assert_eq!(holder(&run_dir), Holder::Process(Some(std::process::id())));
    }

    #[test]
    fn nobody_holds_a_lock_that_was_freed_or_never_taken() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path()), Holder::Nobody);
        drop(acquire(directory.path(), Duration::ZERO).unwrap());
        assert_eq!(holder(directory.path()), Holder::Nobody);
    }

    #[test]
    fn the_run_directory_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        let _lock = acquire(&run_dir, Duration::ZERO).unwrap();
        assert_eq!(std::fs::metadata(&run_dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
}

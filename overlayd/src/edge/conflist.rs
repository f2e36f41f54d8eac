//! Keeps the network configuration of the container runtime in its place.
//!
//! It is written only while pods can be served, and from then on it stays: a daemon that ends or is not ready for a
//! while leaves it, since taking it away would make the node unfit for everything. Both directories are watched, and looked at now
//! and then since notifications can be lost: our file may be deleted or changed, a plugin may come, a file of somebody
//! else may sort first. Files of others are never touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::{directory, place};
use crate::core::conflist::{self, ConflistStatus, FILE_NAME, LOOPBACK, PLUGIN, Wish, is_among};

/// How often the directories are looked at without a notification.
const LOOK: Duration = Duration::from_secs(10);

/// The least time between two writings: somebody who changes the file as often as we do must not become a race.
const REST: Duration = Duration::from_secs(1);

/// Mode of the file: runtimes of every user read it.
const MODE: u32 = 0o644;

/// What is written where.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// The runtime's directory of network configurations.
    pub conf_dir: PathBuf,
    /// The runtime's directory of plugins.
    pub bin_dir: PathBuf,
    /// `cniVersion`.
    pub version: String,
    /// Where the daemon listens; `None` for the place where the plugin looks by itself.
    pub socket: Option<PathBuf>,
}

/// Looks after the file and tells how it does, until nobody listens any more. `serving` says whether pods can be served.
pub async fn keep(
    conflist: Conflist,
    mut serving: watch::Receiver<bool>,
    reports: watch::Sender<Option<ConflistStatus>>,
) {
    let changed = Arc::new(Notify::new());
    let mut watchers = [None, None];
    loop {
        for (watcher, path) in watchers.iter_mut().zip([&conflist.conf_dir, &conflist.bin_dir]) {
            if watcher.is_none() {
                *watcher = directory::subscribe(path, &changed);
            }
        }
        let may_write = *serving.borrow_and_update();
        let place = conflist.clone();
        let Ok(look) = tokio::task::spawn_blocking(move || place.look(may_write)).await else { return };
        tell(&reports, &look);
        if look.wrote {
            sleep(REST).await;
        }
        tokio::select! {
            outcome = serving.changed() => if outcome.is_err() { return },
            () = changed.notified() => directory::settle(&changed).await,
            () = sleep(LOOK) => {}
        }
    }
}

/// What one look found.
#[derive(Debug)]
struct Look {
    status: ConflistStatus,
    wrote: bool,
}

fn tell(reports: &watch::Sender<Option<ConflistStatus>>, look: &Look) {
    let Look { status, wrote } = look;
    if *wrote {
        tracing::info!(file = %status.file, chained = ?status.chained, "network configuration written");
    }
    reports.send_if_modified(|last| {
        let trouble =
            |status: &Option<ConflistStatus>| status.as_ref().and_then(|status| status.trouble.clone());
        let missing = |status: &ConflistStatus| status.missing.clone();
        if let Some(problem) = &status.trouble
            && trouble(last).as_ref() != Some(problem)
        {
            tracing::warn!(%problem, "the network configuration");
        }
        if last.as_ref().map(missing).unwrap_or_default() != status.missing {
            tracing::info!(missing = ?status.missing, "plugins beside ours");
        }
        let is_new = last.as_ref() != Some(status);
        *last = Some(status.clone());
        is_new
    });
}

impl Conflist {
    /// Path of our file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.conf_dir.join(FILE_NAME)
    }

    fn look(&self, may_write: bool) -> Look {
        let file = self.file();
        let mut look = Look {
            status: ConflistStatus { file: file.display().to_string(), ..Default::default() },
            wrote: false,
        };
        match self.try_look(&file, may_write, &mut look) {
            Ok(()) => {}
            Err(problem) => look.status.trouble = Some(problem),
        }
        look
    }

    fn try_look(&self, file: &Path, may_write: bool, look: &mut Look) -> Result<(), String> {
        let status = &mut look.status;
        let files = names(&self.conf_dir)?;
        status.ahead = conflist::ahead(&files)
            .iter()
            .map(|name| self.conf_dir.join(name).display().to_string())
            .collect();
        let plugins = names(&self.bin_dir)?;
        status.chained = conflist::chained(&plugins, true);
        status.missing = conflist::chained(&plugins, false);
        if !is_among(&plugins, LOOPBACK) {
            status.missing.push(LOOPBACK.to_owned());
        }
        let wish = Wish { version: &self.version, socket: self.socket.as_deref(), plugins: &plugins };
        let contents = conflist::render(wish);
        let reading = |error: io::Error| format!("read {}: {error}", file.display());
        status.written = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            other => other.map_err(reading)? == contents.as_bytes(),
        };
        if !is_among(&plugins, PLUGIN) {
            return Err(format!(
                "the plugin {} is missing: run `overlayd install`, or delete this node's overlayd pod, whose start installs it",
                self.bin_dir.join(PLUGIN).display()
            ));
        }
        if !status.written && may_write {
            place::place(file, contents.as_bytes(), MODE)
                .map_err(|error| format!("write {}: {error}", file.display()))?;
            (status.written, look.wrote) = (true, true);
        }
        Ok(())
    }
}

fn names(directory: &Path) -> Result<Vec<String>, String> {
    let failed = |error: io::Error| format!("read the directory {}: {error}", directory.display());
    let entries = fs::read_dir(directory).map_err(failed)?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(failed)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(8);

    struct World {
        _directory: TempDir,
        conflist: Conflist,
        serving: watch::Sender<bool>,
        reports: watch::Receiver<Option<ConflistStatus>>,
    }

    fn world(serving: bool) -> World {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("net.d")).unwrap();
        fs::create_dir(at("bin")).unwrap();
        fs::write(at("bin/overlayd"), "").unwrap();
        let conflist =
            Conflist { conf_dir: at("net.d"), bin_dir: at("bin"), version: "1.0.0".to_owned(), socket: None };
        let (serving, may_write) = watch::channel(serving);
        let (sender, reports) = watch::channel(None);
        tokio::spawn(keep(conflist.clone(), may_write, sender));
        World { _directory: directory, conflist, serving, reports }
    }

    impl World {
        async fn report(&mut self, right: impl Fn(&ConflistStatus) -> bool) -> ConflistStatus {
            let found = self.reports.wait_for(|status| status.as_ref().is_some_and(&right));
            timeout(DEADLINE, found).await.expect("a report in time").unwrap().clone().unwrap()
        }
    }

    #[tokio::test]
    async fn it_is_written_once_pods_can_be_served_and_stays_when_they_cannot() {
        let mut world = world(false);
        assert!(!world.report(|_| true).await.written);
        assert!(!world.conflist.file().exists());
        world.serving.send(true).unwrap();
        let status = world.report(|status| status.written).await;
        assert_eq!(status.missing, ["portmap", "bandwidth", "loopback"]);
        world.serving.send(false).unwrap();
        fs::write(world.conflist.bin_dir.join("portmap"), "").unwrap();
        assert!(!world.report(|status| !status.missing.contains(&"portmap".to_owned())).await.written);
        assert!(world.conflist.file().exists());
    }

    #[tokio::test]
    async fn it_heals_and_follows_the_plugins() {
        let mut world = world(true);
        world.report(|status| status.written).await;
        let whole = fs::read(world.conflist.file()).unwrap();
        fs::remove_file(world.conflist.file()).unwrap();
        let healed = || fs::read(world.conflist.file()).is_ok_and(|contents| contents == whole);
        timeout(DEADLINE, async {
            while !healed() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
        fs::write(world.conflist.file(), "{}").unwrap();
        timeout(DEADLINE, async {
            while !healed() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
        fs::write(world.conflist.bin_dir.join("portmap"), "").unwrap();
        world.report(|status| status.written && status.chained == ["portmap"]).await;
        assert!(fs::read_to_string(world.conflist.file()).unwrap().contains("portMappings"));
    }

    #[tokio::test]
    async fn a_missing_plugin_keeps_it_away_with_the_remedy() {
        let mut world = world(false);
        fs::remove_file(world.conflist.bin_dir.join("overlayd")).unwrap();
        let status = world.report(|status| status.trouble.is_some()).await;
        assert!(status.trouble.unwrap().contains("overlayd install"));
        world.serving.send(true).unwrap();
        fs::write(world.conflist.bin_dir.join("overlayd"), "").unwrap();
        assert_eq!(world.report(|status| status.written).await.trouble, None);
    }

    #[tokio::test]
    async fn a_file_that_sorts_first_is_told_and_left() {
        let mut world = world(true);
        world.report(|status| status.written).await;
        let foreign = world.conflist.conf_dir.join("05-other.conf");
        fs::write(&foreign, "{}").unwrap();
        let status = world.report(|status| !status.ahead.is_empty()).await;
        assert_eq!(status.ahead, [foreign.display().to_string()]);
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "{}");
    }
}

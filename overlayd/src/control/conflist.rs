//! What control knows of the runtime's network configuration: it says when the file may be written, and hears how it does.

use tokio::sync::watch;
use wire::tag::DEFAULT_SOCKET;

use super::Control;
use crate::core::config::Config;
use crate::core::conflist::{ConflistStatus, FILE_NAME};
use crate::core::plan::Conflict;
use crate::edge::cni;
use crate::edge::conflist::Conflist;

/// Both ends of the talk with the task that looks after the file.
pub(super) struct Attendance {
    pub(super) wish: Option<Conflist>,
    pub(super) serving: watch::Sender<bool>,
    status: Option<ConflistStatus>,
}

impl Attendance {
    pub(super) fn new(config: &Config) -> Self {
        let wish = config.cni_conf_dir.clone().map(|conf_dir| {
            let socket = config.run_dir.join(cni::SOCKET_FILE);
            Conflist {
                conf_dir,
                bin_dir: config.cni_bin_dir.clone(),
                version: config.cni_version.clone(),
                socket: (socket.as_os_str() != DEFAULT_SOCKET).then_some(socket),
            }
        });
        Self { wish, serving: watch::Sender::new(false), status: None }
    }

    /// The file as it was last seen.
    pub(super) fn status(&self) -> Option<&ConflistStatus> {
        self.status.as_ref()
    }

    /// Why runtimes start no pod here, if so, although pods could be served.
    pub(super) fn problem(&self) -> Option<String> {
        self.wish.as_ref()?;
        let Some(status) = &self.status else {
            return Some("the network configuration is not written yet".to_owned());
        };
        match &status.trouble {
            Some(trouble) => Some(format!("runtimes cannot use this network: {trouble}")),
            None if !status.written => Some(format!("{} is not written yet", status.file)),
            None => None,
        }
    }

    /// Files of others that runtimes take instead of ours.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.status.iter().flat_map(|status| &status.ahead).map(|path| Conflict {
            object: format!(
                "network configuration {path}: it sorts before {FILE_NAME}, so runtimes take it instead"
            ),
            remedy: format!("once nothing needs it any more: rm {path}"),
        })
    }
}

impl Control {
    /// Takes in how the file does.
    pub(super) fn on_conflist(&mut self, status: Option<ConflistStatus>) {
        self.conflist.status = status;
        self.tell_conflicts();
        self.publish_due = true;
    }
}

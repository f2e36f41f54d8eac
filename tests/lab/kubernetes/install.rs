//! overlayd on a cluster as its users install it: the image of the static programs, and the manifest of `deploy/`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Cluster, Image};
use crate::binaries::shipped;
use crate::must;

const MANIFEST: &str = "overlayd.yaml";
const UNINSTALL: &str = "uninstall.yaml";

/// Until what a manifest made is gone.
const PATIENCE: Duration = Duration::from_secs(90);

/// The image that the manifest names, as the line has it.
const IMAGE_LINE: &str = "image: ghcr.io/overlayd/overlayd:";
/// The image that is loaded in its place. No registry has it.
const IMAGE: &str = "overlayd.test/overlayd:1";

impl Cluster {
    /// Installs overlayd by the manifest that is shipped, and waits until its pods are Ready on every node.
    ///
    /// # Panics
    /// If that fails; with the state and the logs of everything.
    #[track_caller]
    pub fn install(&self) {
        must(self.try_install());
    }

    /// Installs overlayd by the manifest that is shipped, and waits until its pods are Ready on every node.
    ///
    /// # Errors
    /// If that fails; with the state and the logs of everything.
    pub fn try_install(&self) -> Result<()> {
        self.import(&overlayd_image()?)?;
        self.plane().try_apply(&shipped_manifest(MANIFEST)?)?;
        let nodes = self.lab().nodes().len();
        self.try_wait_pods("overlayd", "app.kubernetes.io/name=overlayd", nodes).map(drop)
    }

    /// Takes overlayd off every node, as the README says. Pods that run are cut off.
    ///
    /// # Panics
    /// If that fails; with the state and the logs of everything.
    #[track_caller]
    pub fn uninstall(&self) {
        must(self.try_uninstall());
    }

    fn try_uninstall(&self) -> Result<()> {
        let (plane, traces) = (self.plane(), shipped_manifest(UNINSTALL)?);
        let delete = |manifests: &str| {
            let command = plane.kubectl_command()?.args(["delete", "--timeout=80s", "-f", "-"]);
            command.stdin(manifests).deadline(PATIENCE).try_run().map(drop)
        };
        delete(&shipped_manifest(MANIFEST)?)?;
        plane.try_apply(&traces)?;
        let nodes = self.lab().nodes().len();
        self.try_wait_pods("overlayd-uninstall", "app.kubernetes.io/name=overlayd-uninstall", nodes)?;
        delete(&traces)
    }
}

/// A manifest of `deploy/` with another image and not another change.
///
/// # Errors
/// If there is no such file, or it names no image.
pub(super) fn shipped_manifest(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut changed = 0;
    let lines = text.lines().map(|line| match line.find(IMAGE_LINE) {
        Some(at) => {
            changed += 1;
            format!("{}image: {IMAGE}\n", &line[..at])
        }
        None => format!("{line}\n"),
    });
    let manifest: String = lines.collect();
    if changed == 0 {
        bail!("{} has no line {IMAGE_LINE}", path.display());
    }
    Ok(manifest)
}

/// What `deploy/Dockerfile` makes.
fn overlayd_image() -> Result<Image> {
    let place = |program: &PathBuf| {
        format!("/usr/local/bin/{}", program.file_name().unwrap_or_default().to_string_lossy())
    };
    let files = shipped()?.into_iter().map(|program| (place(&program), program)).collect();
    Ok(Image {
        name: IMAGE.into(),
        entrypoint: vec!["/usr/local/bin/overlayd".into()],
        environment: vec!["PATH=/usr/local/bin".into()],
        files,
        ..Image::default()
    })
}

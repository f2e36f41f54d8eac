//! Container images without a registry: an OCI layout in a tar archive, made from files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::packet::hex;

/// An image to make.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its full name with a tag.
    pub name: String,
    /// What is run.
    pub entrypoint: Vec<String>,
    /// Its arguments where a pod gives none.
    pub arguments: Vec<String>,
    /// Environment, as `KEY=value`.
    pub environment: Vec<String>,
    /// Files from this machine by their path in the image.
    pub files: Vec<(String, PathBuf)>,
    /// Symbolic links by their path in the image: path, target.
    pub links: Vec<(String, String)>,
    /// Empty directories that anybody may write to.
    pub directories: Vec<String>,
}

impl Image {
    /// An image with one program, which is what is run.
    pub fn of_program(name: &str, program: &Path) -> Self {
        let path = format!("/{}", program.file_name().unwrap_or_default().to_string_lossy());
        Self {
            name: name.to_owned(),
            entrypoint: vec![path.clone()],
            files: vec![(path, program.to_owned())],
            ..Self::default()
        }
    }

    /// The archive, as `ctr images import` takes it.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let environment = if self.environment.is_empty() {
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]
        } else {
            self.environment.clone()
        };
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.arguments, "Env": environment, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut archive, "index.json", 0o644, &index)?;
        for blob in [config, manifest, layer] {
            add(&mut archive, &format!("blobs/{}", digest(&blob).replace(':', "/")), 0o644, &blob)?;
        }
        archive.into_inner().context("end the archive")
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        let paths = self.files.iter().map(|(path, _)| path).chain(self.links.iter().map(|(path, _)| path));
        for path in paths {
            for parent in Path::new(path).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
                if parent != Path::new("/") && made.insert(parent.to_owned()) {
                    directory(&mut layer, parent, 0o755)?;
                }
            }
        }
        for path in &self.directories {
            directory(&mut layer, Path::new(path), 0o1777)?;
        }
        for (path, file) in &self.files {
            let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            add(&mut layer, path.trim_start_matches('/'), 0o755, &bytes)?;
        }
        for (path, target) in &self.links {
            let mut header = header(0, 0o777);
            header.set_entry_type(tar::EntryType::Symlink);
            layer.append_link(&mut header, path.trim_start_matches('/'), target).context("add a link")?;
        }
        layer.into_inner().context("end the layer")
    }
}

fn header(size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(mode);
    header
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    archive.append_data(&mut header(bytes.len(), mode), path, bytes).with_context(|| format!("add {path}"))
}

fn directory(archive: &mut tar::Builder<Vec<u8>>, path: &Path, mode: u32) -> Result<()> {
    let mut header = header(0, mode);
    header.set_entry_type(tar::EntryType::Directory);
    let path = path.strip_prefix("/").unwrap_or(path);
    archive
        .append_data(&mut header, path, std::io::empty())
        .with_context(|| format!("add {}", path.display()))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn descriptor(media: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()})
}

/// As Go and therefore image manifests call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

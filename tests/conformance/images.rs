//! The suite's own images, made anew: agnhost with the programs that specs run in its shell, and one to ask for names with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tests::go;
use tests::kubernetes::{AGNHOST_IMAGE, Image};

const DNS_IMAGE: &str = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0";

/// By their path in the image: the program here, and Debian's package.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("/bin/sh", "dash", "dash"),
    ("/bin/nc", "nc.openbsd", "netcat-openbsd"),
    ("/usr/bin/curl", "curl", "curl"),
    ("/usr/bin/dig", "dig", "bind9-dnsutils"),
    ("/usr/bin/nslookup", "nslookup", "bind9-dnsutils"),
    ("/usr/bin/getent", "getent", "libc-bin"),
    ("/usr/bin/timeout", "timeout", "coreutils"),
    ("/bin/cat", "cat", "coreutils"),
    ("/bin/ls", "ls", "coreutils"),
    ("/bin/sleep", "sleep", "coreutils"),
    ("/usr/bin/seq", "seq", "coreutils"),
    ("/usr/bin/test", "test", "coreutils"),
    ("/bin/echo", "echo", "coreutils"),
    ("/bin/hostname", "hostname", "hostname"),
    ("/bin/grep", "grep", "grep"),
    ("/sbin/ip", "ip", "iproute2"),
    ("/bin/ss", "ss", "iproute2"),
];

pub(crate) fn all() -> Result<Vec<Image>> {
    let agnhost = Image {
        name: AGNHOST_IMAGE.into(),
        entrypoint: vec!["/agnhost".into()],
        arguments: vec!["pause".into()],
        files: vec![("/agnhost".into(), go::program("agnhost")?)],
        links: vec![("/agnhost-2".into(), "agnhost".into())],
        directories: vec!["/tmp".into(), "/uploads".into()],
        ..Image::default()
    };
    let dns = Image { name: DNS_IMAGE.into(), entrypoint: vec!["/bin/sh".into()], ..Image::default() };
    let porter = go::module_directory("kubernetes", "k8s.io/kubernetes")?.join("test/images/agnhost/porter");
    let mut images = vec![agnhost, dns];
    for name in ["localhost.crt", "localhost.key"] {
        images[0].files.push((format!("/{name}"), porter.join(name)));
    }
    let programs = programs()?;
    for image in &mut images {
        image.files.extend(programs.iter().map(|(path, file)| (path.clone(), file.clone())));
    }
    Ok(images)
}

/// The programs with every library that they load, by path in the image.
fn programs() -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for (path, name, package) in PROGRAMS {
        let Some(program) = find(name) else {
            missing.push(*package);
            continue;
        };
        let output = Command::new("ldd").arg(&program).output().context("run ldd")?;
        for word in
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            files.insert(word.to_owned(), PathBuf::from(word));
        }
        files.insert((*path).to_owned(), program);
    }
    if !missing.is_empty() {
        missing.dedup();
        bail!("the suite's images need programs of this machine: apt-get install {}", missing.join(" "));
    }
    Ok(files)
}

fn find(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

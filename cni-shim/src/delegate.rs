//! Another plugin that gives the addresses (`ipam.type`), run as the specification says: the same environment and the
//! same standard input, found by name in `CNI_PATH`.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use wire::ipc::Attachment;

use crate::conf::Conf;
use crate::error::{CniError, Code};
use crate::wish::{PodRoute, routes};

/// Largest answer in bytes.
const ANSWER_LIMIT: u64 = 1024 * 1024;

/// Pause between two looks at a process that has said its last word, or whose file is still being written.
const PAUSE: Duration = Duration::from_millis(2);

/// The plugin.
#[derive(Clone, Debug)]
pub struct Delegate {
    name: String,
    path: PathBuf,
    input: Vec<u8>,
    /// Variables that differ from our own.
    environment: Vec<(&'static str, String)>,
}

/// What it gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// One address, or one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Routes for the pod.
    pub routes: Vec<PodRoute>,
    /// `dns`.
    pub dns: Option<Value>,
}

impl Delegate {
    /// Finds the plugin that the configuration names; `None` if the daemon gives the addresses.
    ///
    /// # Errors
    /// Code 7 if it is not in `CNI_PATH`, or is this plugin.
    pub fn find(conf: &Conf, directories: Option<&OsStr>) -> Result<Option<Self>, CniError> {
        let Some(name) = &conf.ipam else { return Ok(None) };
        let invalid = |message: String| CniError::new(Code::InvalidConfig, message);
        let directories = directories.unwrap_or_default();
        let candidates = std::env::split_paths(directories).filter(|directory| directory.is_absolute());
        let path = candidates.map(|directory| directory.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| {
            invalid(format!("ipam plugin {name:?} is not in CNI_PATH ({})", directories.to_string_lossy()))
        })?;
        let identity = |path: &str| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let is_own = identity("/proc/self/exe")
            .is_ok_and(|own| std::fs::metadata(&path).is_ok_and(|file| (file.dev(), file.ino()) == own));
        if is_own {
            return Err(invalid(format!(
                "ipam type {name:?} is overlayd itself: remove ipam from the configuration"
            )));
        }
        Ok(Some(Self { name: name.clone(), path, input: conf.text.clone(), environment: Vec::new() }))
    }

    /// The same plugin, called for another container than we were, whose namespace is not known.
    #[must_use]
    pub fn called_for(&self, attachment: &Attachment) -> Self {
        let Attachment { network: _, container, ifname } = attachment.clone();
        let environment =
            vec![("CNI_CONTAINERID", container), ("CNI_IFNAME", ifname), ("CNI_NETNS", String::new())];
        Self { environment, ..self.clone() }
    }

    /// ADD.
    ///
    /// # Errors
    /// Its own error with its own code; 104 if it makes no sense, 11 if it takes too long.
    pub fn add(&self, patience: Duration) -> Result<Given, CniError> {
        let answer = self.call("ADD", patience)?;
        given(&answer).map_err(|why| {
            CniError::new(Code::Ipam, format!("ipam plugin {:?} gave an impossible result: {why}", self.name))
        })
    }

    /// Any verb that answers nothing.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn call(&self, verb: &str, patience: Duration) -> Result<Vec<u8>, CniError> {
        let deadline = Instant::now() + patience;
        let failed =
            |code, words: String| CniError::new(code, format!("ipam plugin {:?}: {words}", self.name));
        let late = || {
            failed(Code::TryAgainLater, format!("{verb} did not finish within {} s", patience.as_secs_f32()))
        };
        let mut child =
            self.start(verb, deadline).map_err(|error| failed(Code::Ipam, format!("start it: {error}")))?;
        let (answer, status) = match self.converse(&mut child, deadline) {
            Ok(Some(ended)) => ended,
            Ok(None) => {
                end(&mut child);
                return Err(late());
            }
            Err(error) => {
                end(&mut child);
                return Err(failed(Code::Ipam, format!("{verb}: {error}")));
            }
        };
        if status.success() {
            return Ok(answer);
        }
        let error: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let code = error["code"].as_u64().and_then(|code| u32::try_from(code).ok());
        let (Some(code), Some(words)) = (code, error["msg"].as_str()) else {
            return Err(failed(Code::Ipam, format!("{verb} failed ({status}) without saying why")));
        };
        // An error of code 0 would be none.
        let code = if code == 0 { Code::Ipam } else { Code::Delegated(code) };
        Err(CniError::new(code, words).with_details(error["details"].as_str().unwrap_or_default()))
    }

    fn start(&self, verb: &str, deadline: Instant) -> io::Result<Child> {
        loop {
            let mut command = Command::new(&self.path);
            command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::piped());
            // With what it starts it can be ended as a whole: who holds our standard error open keeps the runtime waiting.
            command.process_group(0);
            match command.spawn() {
                // It is being installed just now.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Its whole answer and how it ended; `None` if it does not in time.
    fn converse(&self, child: &mut Child, deadline: Instant) -> io::Result<Option<(Vec<u8>, ExitStatus)>> {
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let input = self.input.clone();
        // Neither can be interrupted; both end with this process.
        thread::Builder::new().spawn(move || {
            let _ = stdin.write_all(&input);
        })?;
        let (sender, receiver) = mpsc::sync_channel(1);
        thread::Builder::new().spawn(move || {
            let mut answer = Vec::new();
            let outcome = stdout.take(ANSWER_LIMIT).read_to_end(&mut answer).map(|_| answer);
            let _ = sender.send(outcome);
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(answer) = receiver.recv_timeout(left) else { return Ok(None) };
        let answer = answer?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some((answer, status)));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(PAUSE);
        }
    }
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn given(answer: &[u8]) -> Result<Given, String> {
    let value: Value = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
    let mut addresses = Vec::new();
    for ip in value["ips"].as_array().into_iter().flatten() {
        let text = ip["address"].as_str().unwrap_or_default();
        let net: IpNet = text.parse().map_err(|error| format!("address {text:?}: {error}"))?;
        addresses.push(net.addr());
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    let families: Vec<bool> = addresses.iter().map(IpAddr::is_ipv6).collect();
    if !matches!(families[..], [false] | [true] | [false, true]) {
        return Err(format!("want one address, or one of each family, not {addresses:?}"));
    }
    let list = &value["routes"];
    let routes =
        if list.is_null() { Vec::new() } else { routes(list).map_err(|why| format!("routes: {why}"))? };
    Ok(Given { addresses, routes, dns: value.get("dns").cloned() })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn with(script: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("cni-delegate-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let place = Self(std::env::temp_dir().join(name));
            fs::create_dir(&place.0).unwrap();
            let file = place.0.join("giver");
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            place
        }

        fn delegate(&self) -> Delegate {
            Delegate::find(&conf("giver"), Some(self.0.as_os_str())).unwrap().unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn conf(name: &str) -> Conf {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","ipam":{{"type":"{name}"}}}}"#);
        Conf::parse(text.as_bytes()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn its_result_is_read_and_it_hears_the_configuration() {
        let place = Place::with(
            r#"grep -q '"name":"n"' && [ "$CNI_COMMAND" = ADD ] && echo '{"ips":[{"address":"fd00::5/64"},{"address":"10.1.0.5/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}'"#,
        );
        let given = place.delegate().add(LONG).unwrap();
        assert_eq!(given.addresses, ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert_eq!(given.routes, [PodRoute::default_of(false)]);
    }

    #[test]
    fn its_error_is_passed_on_as_it_is() {
        let place = Place::with(
            r#"echo '{"cniVersion":"1.0.0","code":117,"msg":"all full","details":"really"}'; exit 1"#,
        );
        let error = place.delegate().add(LONG).unwrap_err();
        assert_eq!((error.code.number(), &*error.message, &*error.details), (117, "all full", "really"));
    }

    #[test]
    fn one_that_makes_no_sense_is_named() {
        for script in [
            "exit 1",
            "echo nonsense; exit 3",
            "echo nonsense",
            "echo '{}'",
            r#"echo '{"ips":[{"address":"10.0.0.1/8"},{"address":"10.0.0.2/8"}]}'"#,
            r#"echo '{"ips":[{"address":"10.0.0.1"}]}'"#,
            r#"echo '{"code":0,"msg":"x"}'; exit 1"#,
        ] {
            let error = Place::with(script).delegate().add(LONG).unwrap_err();
            assert_eq!(error.code, Code::Ipam, "{script}: {error}");
        }
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let place = Place::with("exec sleep 60");
        let begun = Instant::now();
        let error = place.delegate().call("DEL", Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.code, Code::TryAgainLater);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn only_what_is_in_the_path_is_run() {
        assert!(Delegate::find(&Conf { ipam: None, ..conf("x") }, None).unwrap().is_none());
        for path in [None, Some(""), Some("relative/dir"), Some("/nonexistent")] {
            let error = Delegate::find(&conf("sh"), path.map(OsStr::new)).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{path:?}");
        }
        let own = std::env::current_exe().unwrap();
        let name = own.file_name().and_then(OsStr::to_str).unwrap();
        let error = Delegate::find(&conf(name), own.parent().map(Path::as_os_str)).unwrap_err();
        assert!(error.message.contains("itself"), "{error}");
    }
}

//! Readers of single values. Each answers with the value or with what is wrong and what is right.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use wire::tag::{VETH_PREFIX, is_interface_name};

use super::{LogFormat, Mode, TunnelGso};
use crate::core::cluster::AnnotationPrefix;

pub(super) type Read<T> = Result<T, String>;

/// Longest `run_dir` in bytes: a Unix socket's path has 107 (`sun_path` in `<linux/un.h>`), and names are added.
const RUN_DIR_LIMIT: usize = 90;

pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Read<T>
where
    T: TryFrom<u64> + Into<u64> + Copy,
{
    let (low, high): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
    let problem = || format!("{text:?} is not a whole number from {low} to {high}");
    let value: u64 = text.parse().map_err(|_| problem())?;
    if !(low..=high).contains(&value) {
        return Err(problem());
    }
    T::try_from(value).map_err(|_| problem())
}

pub(super) fn boolean(text: &str) -> Read<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

pub(super) fn mark(text: &str) -> Read<u32> {
    let value = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value.map_err(|_| format!("{text:?} is not a mark of 32 bits, such as 0x4000"))
}

pub(super) fn mode(text: &str) -> Read<Mode> {
    match text {
        "island" => Ok(Mode::Island),
        "flat" | "isolated" => Err(format!("{text} mode is not available yet; only island is")),
        _ => Err(format!("{text:?} is not a mode; only island is")),
    }
}

pub(super) fn log_format(text: &str) -> Read<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

pub(super) fn tunnel_gso(text: &str) -> Read<TunnelGso> {
    match text {
        "auto" => Ok(TunnelGso::Auto),
        "always" => Ok(TunnelGso::Always),
        "never" => Ok(TunnelGso::Never),
        _ => Err(format!("{text:?} is none of auto, always and never")),
    }
}

pub(super) fn text(text: &str) -> Read<String> {
    if text.is_empty() { Err("is empty".into()) } else { Ok(text.to_owned()) }
}

/// A DNS subdomain by RFC 1123, as Kubernetes demands of Node names.
pub(super) fn node_name(text: &str) -> Read<String> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    if (1..=253).contains(&text.len()) && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not a Node name: lower-case letters, digits, '-' and '.', at most 253 bytes"))
}

pub(super) fn annotation_prefix(text: &str) -> Read<String> {
    match AnnotationPrefix::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!(
            "{text:?} is not an annotation prefix: a lower-case domain, then optionally '/' and a name of \
             a-z, 0-9, '-' and '_'"
        )),
    }
}

pub(super) fn device(text: &str) -> Read<String> {
    if !is_interface_name(text) || text.contains('%') {
        return Err(format!(
            "{text:?} is not a device name: at most 15 bytes without '/', ':', '%' and white space"
        ));
    }
    if text.starts_with(VETH_PREFIX) {
        return Err(format!("{text:?} begins with {VETH_PREFIX:?}, which marks the veths of pods"));
    }
    // These three are directories of their own, or the loopback device, under /proc/sys/net.
    if matches!(text, "lo" | "all" | "default") {
        return Err(format!("{text:?} has a meaning of its own to the kernel"));
    }
    Ok(text.to_owned())
}

pub(super) fn directory(text: &str) -> Read<PathBuf> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err(format!("{text:?} is not an absolute path without '..'"));
    }
    Ok(path)
}

/// Versions in which the runtime tells the plugin what an earlier call gave, so that DEL and CHECK know all.
pub(super) fn cni_version(text: &str) -> Read<String> {
    match text {
        "0.4.0" | "1.0.0" | "1.1.0" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is none of 0.4.0, 1.0.0 and 1.1.0")),
    }
}

pub(super) fn run_dir(text: &str) -> Read<PathBuf> {
    let path = directory(text)?;
    if text.len() > RUN_DIR_LIMIT {
        return Err(format!("{text:?} is longer than {RUN_DIR_LIMIT} bytes, so socket paths would not fit"));
    }
    Ok(path)
}

/// Port of the admin pages where only an address is given, as Kubernetes tells a pod its host's.
pub(super) const ADMIN_PORT: u16 = 9472;

pub(super) fn listen(text: &str) -> Read<Option<SocketAddr>> {
    if text == "off" {
        return Ok(None);
    }
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, ADMIN_PORT));
    match bare.or_else(|_| text.parse::<SocketAddr>()) {
        Ok(address) if address.port() != 0 => Ok(Some(address)),
        _ => Err(format!("{text:?} is neither an address, with or without a port (127.0.0.1:9472), nor off")),
    }
}

/// URL of an API server. Whoever reads the connection has our token, so it is encrypted but within the machine.
pub(super) fn api_server(text: &str) -> Read<String> {
    let shape = || format!("{text:?} is not the URL of an API server, such as https://192.0.2.10:6443");
    let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, port)) => {
            host.parse::<Ipv6Addr>().map_err(|_| shape())?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("443")).ok_or_else(shape)?)
        }
        None => authority.split_once(':').unwrap_or((authority, "443")),
    };
    let is_host = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b':');
    let is_path = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~' | b'/');
    if host.is_empty() || !host.bytes().all(is_host) || !path.bytes().all(is_path) {
        return Err(shape());
    }
    match port.parse::<u16>() {
        Ok(port) if port != 0 => {}
        _ => return Err(shape()),
    }
    let is_near = || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match scheme {
        "https" => Ok(text.to_owned()),
        "http" if is_near() => Ok(text.to_owned()),
        "http" => Err(format!("{text:?} would show our token to the network: use https")),
        _ => Err(shape()),
    }
}

/// CIDRs joined by commas, without duplicates. White space around each is allowed.
pub(super) fn cidrs(text: &str) -> Read<Vec<IpNet>> {
    let mut cidrs = Vec::new();
    let mut faults = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match cidr(part) {
            Ok(cidr) if cidrs.contains(&cidr) => {}
            Ok(cidr) => cidrs.push(cidr),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(cidrs) } else { Err(faults.join("; ")) }
}

pub(super) fn cluster_cidrs(text: &str) -> Read<Vec<IpNet>> {
    let cidrs = cidrs(text)?;
    match cidrs.iter().find(|cidr| cidr.prefix_len() == 0) {
        Some(cidr) => Err(format!("{cidr} is every address; pods cannot own them all")),
        None => Ok(cidrs),
    }
}

fn cidr(text: &str) -> Read<IpNet> {
    let Ok(cidr) = text.parse::<IpNet>() else {
        let hint = match text.parse::<IpAddr>() {
            Ok(address) => format!("; for this address alone write {}", IpNet::from(address)),
            Err(_) => String::new(),
        };
        return Err(format!("{text:?} is not a CIDR such as 10.244.0.0/16{hint}"));
    };
    if cidr.trunc() != cidr {
        return Err(format!("{cidr} has host bits set; {} is the network", cidr.trunc()));
    }
    Ok(cidr)
}

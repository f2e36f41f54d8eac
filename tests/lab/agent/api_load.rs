//! Many Node objects, and many changes of them, through `kubectl proxy`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Connections that write at a time.
const WRITERS: usize = 8;

/// Images of a Node: kubelet names up to 50, and they are most of an object's bytes.
const IMAGES: usize = 50;

/// Makes so many Nodes.
pub(crate) fn fill(server: SocketAddr, count: usize) -> Result<()> {
    let threads: Vec<_> = (0..WRITERS)
        .map(|writer| {
            std::thread::spawn(move || -> Result<()> {
                let mut door = Door::open(server)?;
                (writer..count).step_by(WRITERS).try_for_each(|number| {
                    door.ask("POST", "/api/v1/nodes", "application/json", &node(number))
                })
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    crate::traffic::report(&count)
}

/// Changes Nodes at this rate: their address, or something that is nobody's business.
pub(crate) fn churn(server: SocketAddr, count: usize, rate: u32, seconds: u32, matters: bool) -> Result<()> {
    let mut door = Door::open(server)?;
    let begin = Instant::now();
    for round in 0..rate * seconds {
        let due = begin + Duration::from_secs_f64(f64::from(round) / f64::from(rate));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // 7919 is prime: the changes are spread over all Nodes.
        let number = round as usize * 7919 % count;
        let annotations = if matters {
            json!({"overlayd.io/public-ip": format!("172.20.{}.{}", round / 250 % 250, round % 250 + 1)})
        } else {
            json!({"example.com/heartbeat": round.to_string()})
        };
        let patch = json!({"metadata": {"annotations": annotations}});
        door.ask(
            "PATCH",
            &format!("/api/v1/nodes/{}", name(number)),
            "application/merge-patch+json",
            &patch,
        )?;
    }
    crate::traffic::report(&(rate * seconds))
}

fn name(number: usize) -> String {
    format!("many-{number:05}")
}

fn node(number: usize) -> Value {
    let (high, low) = (number / 256, number % 256);
    let cidrs = [format!("10.{}.{low}.0/24", 64 + high), format!("fd00:{number:x}::/64")];
    let images: Vec<Value> = (0..IMAGES)
        .map(|image| {
            let name = format!("registry.example.com/team-{image}/application-{image}");
            json!({"names": [format!("{name}@sha256:{:064x}", image * 7919), format!("{name}:v1.{image}.0")], "sizeBytes": 123_456_789})
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name(number),
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name(number), "topology.kubernetes.io/zone": "a"},
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "overlayd.io/backend-type": "vxlan",
                "overlayd.io/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}}"),
            },
        },
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": format!("172.16.{high}.{}", low.max(1))},
                {"type": "InternalIP", "address": format!("2001:db8:2::{:x}", number + 1)},
                {"type": "Hostname", "address": name(number)},
            ],
            "images": images,
        },
    })
}

/// One connection that is kept.
struct Door {
    stream: BufReader<TcpStream>,
}

impl Door {
    fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn ask(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> Result<()> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = 0;
        let mut chunked = false;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            chunked |= line.starts_with("transfer-encoding:") && line.contains("chunked");
        }
        let mut answer = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(self.line()?.trim(), 16)?;
                self.take(size, &mut answer)?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.take(length, &mut answer)?;
        }
        match status.split(' ').nth(1) {
            Some("200" | "201") => Ok(()),
            _ => bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer)),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn take(&mut self, count: usize, into: &mut Vec<u8>) -> Result<()> {
        (&mut self.stream).take(count as u64).read_to_end(into)?;
        Ok(())
    }
}

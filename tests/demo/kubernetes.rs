//! The demo on real Kubernetes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tests::go;
use tests::kubernetes::{Cluster, Proxy};

use crate::matrix::{self, Matrix};
use crate::report::Report;
use crate::{Arguments, SHELL, interact};

const WORKLOAD: &str = include_str!("workload.yaml");
/// Replicas in the workload.
const REPLICAS: usize = 6;

pub(crate) fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let deadline = Duration::from_secs(if arguments.shell { 7 * 24 * 3600 } else { 900 });
    report.heading(&format!("Start Kubernetes {} on {} nodes", go::kubernetes_version(), arguments.nodes));
    let begin = Instant::now();
    let cluster = Cluster::builder()
        .nodes(arguments.nodes.into())
        .proxy(Proxy::Nftables)
        .deadline(deadline)
        .try_start()?;
    report.check("kubelets registered", true, seconds(begin));
    let begin = Instant::now();
    cluster.try_install()?;
    cluster.try_wait_nodes_ready()?;
    report.check("kubectl apply -f deploy/overlayd.yaml: nodes Ready", true, seconds(begin));
    let begin = Instant::now();
    cluster.plane().try_apply(WORKLOAD)?;
    let pods = cluster.try_wait_pods("default", "app=echo", REPLICAS)?;
    report.check("a Deployment and its Service: pods Ready", true, seconds(begin));
    report.heading("kubectl get nodes,pods,services -A -o wide");
    for line in cluster.plane().try_kubectl(&["get", "nodes,pods,services", "-A", "-o", "wide"])?.lines() {
        report.line(&format!("  {line}"));
    }
    matrix::show(&matrix(&cluster, &pods)?, report);
    service(&cluster, &pods, report)?;
    if let Some(directory) = &arguments.keep_logs {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        std::fs::write(directory.join("cluster.txt"), cluster.describe())
            .context("write the cluster's description")?;
        report.line(&format!("\nlogs are in {}", directory.display()));
    }
    if arguments.shell {
        report.heading(SHELL);
        report.line("  kubectl get pods -A -o wide");
        let kubectl = go::program("kubectl")?;
        let directory = kubectl.parent().context("no directory")?;
        interact(
            cluster.plane().host(),
            &[directory],
            &[("KUBECONFIG", "/run/kubernetes/admin.kubeconfig")],
        )?;
    }
    Ok(())
}

fn seconds(begin: Instant) -> String {
    format!("{:.1} s", begin.elapsed().as_secs_f64())
}

fn matrix<'a>(cluster: &'a Cluster, pods: &[Value]) -> Result<Matrix<'a>> {
    let nodes = cluster.lab().nodes();
    let mut tunnels: Vec<Vec<IpAddr>> = Vec::new();
    for node in nodes {
        let object = cluster.plane().try_get(&["node", node.name()])?;
        let cidr =
            object["spec"]["podCIDR"].as_str().context("a node without pod CIDR")?.parse::<ipnet::IpNet>()?;
        tunnels.push(vec![cidr.network()]);
    }
    let mut hosts = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        let index = nodes
            .iter()
            .position(|node| pod["spec"]["nodeName"] == node.name())
            .context("a pod elsewhere")?;
        hosts.push((index, cluster.try_pod(pod)?.renamed(&format!("pod-{}", number + 1))));
    }
    Ok(Matrix { lab: cluster.lab(), pods: hosts, tunnels })
}

/// The Service leads every pod and node to every pod.
fn service(cluster: &Cluster, pods: &[Value], report: &mut Report) -> Result<()> {
    report.heading("The Service, from every node and from outside");
    let object = cluster.plane().try_get(&["service", "echo"])?;
    let address: IpAddr = object["spec"]["clusterIP"].as_str().context("no cluster IP")?.parse()?;
    let port = object["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?;
    let port = u16::try_from(port).map_err(|_| anyhow!("port {port}"))?;
    let outside = (cluster.lab().outside(), cluster.lab().node(1).v4(), port);
    let places = cluster.lab().nodes().iter().map(|node| (&**node, address, 80)).chain([outside]);
    for (from, address, port) in places {
        let mut found = std::collections::BTreeSet::new();
        let end = Instant::now() + Duration::from_secs(20);
        while found.len() < pods.len() && Instant::now() < end {
            if let Ok(answer) = from.http((address, port).into(), "/hostname") {
                found.insert(answer.body);
            }
        }
        let name = format!("{} asks {address}:{port}", from.label());
        report.check(
            &name,
            found.len() == pods.len(),
            format!("{} of {} pods answered", found.len(), pods.len()),
        );
    }
    Ok(())
}

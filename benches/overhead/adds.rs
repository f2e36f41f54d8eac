//! How long a pod waits for its network: ADD of our plugin, and of the reference plugins ptp and host-local in turn with it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;
use tests::{Cni, Node, Output};

use crate::report::{Better, Cell, Metric};

/// The median of ours, in milliseconds.
pub(crate) const OURS: &str = "cni_add";

/// The median of ours by that of the reference plugins.
pub(crate) const RATIO: &str = "cni_add.ratio";

/// The name of the reference plugins among the cells.
const REFERENCE: &str = "ptp";

/// Times so many ADDs, from the moment that the plugin is loaded to its end. Without the reference plugins ours alone.
pub(crate) fn time(node: &Node, count: usize) -> Result<Vec<Metric>> {
    let plugins = tests::go::cni_plugins().ok();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..count {
        ours.push(milliseconds(&Cni::prepare(node, "ours")?, Cni::try_call)?);
        if let Some(plugins) = &plugins {
            theirs.push(milliseconds(&of_ptp(node, plugins)?, |cni, verb| {
                cni.try_call_of(&plugins.join("ptp").to_string_lossy(), verb)
            })?);
        }
    }
    let (p50, p99) = (quantile(&mut ours, 0.5), quantile(&mut ours, 0.99));
    let mut metrics =
        vec![metric(OURS, "p50", "ms", "overlayd", p50), metric("cni_add.p99", "p99", "ms", "overlayd", p99)];
    if !theirs.is_empty() {
        let reference = quantile(&mut theirs, 0.5);
        let cells = metric(OURS, "", "", REFERENCE, reference).cells;
        metrics[0].cells.extend(cells);
        metrics.push(metric(RATIO, "p50, ratio to ptp with host-local", "", "overlayd", p50 / reference));
    }
    Ok(metrics)
}

fn milliseconds(cni: &Cni, call: impl Fn(&Cni, &str) -> Result<Output>) -> Result<f64> {
    let output = call(cni, "ADD")?;
    if !output.success() {
        bail!("ADD failed: {output}");
    }
    Ok(output.exit.took.as_secs_f64() * 1e3)
}

fn of_ptp(node: &Node, plugins: &Path) -> Result<Cni> {
    let mut cni = Cni::prepare(node, "reference")?;
    cni.plugin_path = plugins.to_string_lossy().into_owned();
    cni.config = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/reference",
            // As large as a node's share usually is; a range of documentation (RFC 2544) that the lab does not use.
            "ranges": [[{"subnet": "198.18.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    Ok(cni)
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * share).round() as usize]
}

fn metric(id: &str, title: &str, unit: &str, contender: &str, value: f64) -> Metric {
    let cell = Cell { values: vec![Some(value)], disturbed: vec![false], ..Cell::default() };
    Metric {
        id: id.to_owned(),
        title: format!("CNI ADD: {title}"),
        unit: unit.to_owned(),
        better: Better::Lower,
        cells: BTreeMap::from([(contender.to_owned(), cell)]),
    }
}

//! The report, as it is written to `report.json`.
//!
//! The document's `schema` is [`SCHEMA`]. Its version changes when a field changes its meaning or goes away; readers should ignore fields that they do not
//! know. `benches/REPORT.md` describes it for people who read it by other programs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::stats::Spread;

/// Name and version of the document.
pub(crate) const SCHEMA: &str = "overlayd-overhead/1";

/// The contender that all others are compared with.
pub(crate) const BASE: &str = "kernel-vxlan";

/// One run of the bench.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`SCHEMA`].
    pub(crate) schema: String,
    /// The command line that made it.
    pub(crate) command: String,
    /// When it began, in seconds since 1970.
    pub(crate) started: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// Order of contenders within a round follows from it.
    pub(crate) seed: u64,
    /// Rounds of each measure.
    pub(crate) rounds: usize,
    /// Length of one measurement in seconds.
    pub(crate) window: f64,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Who took part, in order.
    pub(crate) contenders: Vec<Contender>,
    /// Who should have taken part, and why not.
    pub(crate) missing: Vec<Missing>,
    /// What was measured, by world.
    pub(crate) worlds: Vec<World>,
}

/// The machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Processors that this program may use.
    pub(crate) cpus: usize,
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// Load average of the last minute when the bench began.
    pub(crate) load: f64,
}

/// One way from pod to pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Contender {
    /// Short name, the key everywhere else.
    pub(crate) id: String,
    /// What it is.
    pub(crate) title: String,
}

/// A contender or measure that could not be had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// What is missing.
    pub(crate) name: String,
    /// Why.
    pub(crate) reason: String,
}

/// One kind of underlay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct World {
    /// Short name.
    pub(crate) id: String,
    /// What it is.
    pub(crate) title: String,
    /// Offloads of the nodes' uplinks.
    pub(crate) uplink: BTreeMap<String, bool>,
    /// One entry for each figure.
    pub(crate) metrics: Vec<Metric>,
    /// Distributions: metric id, contender, [`tests::load::QUANTILES`] points (medians of the rounds), microseconds.
    pub(crate) distributions: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
}

/// One figure of every contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metric {
    /// Short name: the measure, then what of it.
    pub(crate) id: String,
    /// What it is.
    pub(crate) title: String,
    /// Its unit.
    pub(crate) unit: String,
    /// Which way is better.
    pub(crate) better: Better,
    /// By contender.
    pub(crate) cells: BTreeMap<String, Cell>,
}

/// One figure of one contender.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// By round; `null` where the measurement failed.
    pub(crate) values: Vec<Option<f64>>,
    /// By round: whether others used the machine meanwhile.
    pub(crate) disturbed: Vec<bool>,
    /// Of the values.
    pub(crate) spread: Option<Spread>,
    /// Of the values, each divided by [`BASE`]'s of the same round.
    pub(crate) ratio: Option<Spread>,
}

impl Report {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let report: Self =
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        ensure!(report.schema == SCHEMA, "{} is a {}, not a {SCHEMA}", path.display(), report.schema);
        Ok(report)
    }

    pub(crate) fn title<'a>(&'a self, contender: &'a str) -> &'a str {
        self.contenders.iter().find(|known| known.id == contender).map_or(contender, |known| &known.title)
    }

    /// Works out medians and ratios from the values.
    pub(crate) fn settle(&mut self) {
        for metric in self.worlds.iter_mut().flat_map(|world| &mut world.metrics) {
            let base = metric.cells.get(BASE).map(|cell| cell.values.clone()).unwrap_or_default();
            for cell in metric.cells.values_mut() {
                cell.spread = Spread::of(cell.values.iter().flatten().copied());
                let ratios = cell.values.iter().zip(&base).filter_map(|(own, base)| {
                    let (own, base) = ((*own)?, (*base)?);
                    (base > 0.0).then(|| own / base)
                });
                cell.ratio = Spread::of(ratios);
            }
        }
    }
}

impl World {
    pub(crate) fn metric(&self, id: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.id == id)
    }
}

impl Metric {
    pub(crate) fn median(&self, contender: &str) -> Option<f64> {
        Some(self.cells.get(contender)?.spread?.median)
    }

    pub(crate) fn ratio(&self, contender: &str) -> Option<f64> {
        Some(self.cells.get(contender)?.ratio?.median)
    }
}

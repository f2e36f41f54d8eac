//! What changed between two reports, beyond noise.

use std::fmt::Write as _;

use crate::report::{BASE, Better, Report};
use crate::stats::Spread;

/// Changes below this share are noise whatever the ranges say: two runs of one build differ by as much.
const NOISE: f64 = 0.05;

/// Something that changed.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    title: String,
    unit: String,
    better: Better,
    before: Spread,
    after: Spread,
}

impl Change {
    pub(crate) fn is_worse(&self) -> bool {
        (self.after.median < self.before.median) == (self.better == Better::Higher)
    }

    fn share(&self) -> f64 {
        if self.before.median == 0.0 { f64::INFINITY } else { self.after.median / self.before.median - 1.0 }
    }
}

/// Figures of overlayd whose ranges do not overlap and whose medians differ by more than noise. Where both reports have the kernel's
/// vxlan, its ratio is compared: that carries over between machines and moods.
pub(crate) fn compare(before: &Report, after: &Report) -> Vec<Change> {
    let mut changes = Vec::new();
    for world in &after.worlds {
        let Some(earlier) = before.worlds.iter().find(|earlier| earlier.id == world.id) else { continue };
        for metric in &world.metrics {
            let cells = earlier.metric(&metric.id).and_then(|old| old.cells.get("overlayd"));
            let (Some(old), Some(new)) = (cells, metric.cells.get("overlayd")) else { continue };
            let (pair, unit) = match (old.ratio, new.ratio) {
                (Some(old), Some(new)) => (Some((old, new)), format!("of {BASE}")),
                _ => (old.spread.zip(new.spread), metric.unit.clone()),
            };
            let Some((before, after)) = pair else { continue };
            let title = format!("{} {}", world.id, metric.title);
            let change = Change { title, unit, better: metric.better, before, after };
            if before.is_apart(&after) && change.share().abs() > NOISE {
                changes.push(change);
            }
        }
    }
    changes
}

pub(crate) fn draw(changes: &[Change]) -> String {
    let mut text = String::from("\nCompared with the earlier report (ranges apart and more than 5 %)\n");
    if changes.is_empty() {
        text.push_str("  nothing changed beyond noise\n");
    }
    for change in changes {
        let word = if change.is_worse() { "worse " } else { "better" };
        let (before, after) = (change.before.median, change.after.median);
        let percent = change.share() * 100.0;
        let _ = writeln!(
            text,
            "  {word} {:<58} {before:>10.3} -> {after:>10.3} {} ({percent:+.0} %)",
            change.title, change.unit
        );
    }
    text
}

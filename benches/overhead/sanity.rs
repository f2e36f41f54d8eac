//! What must hold on any machine, however busy: that everything was measured, and that nothing is off by an order of magnitude.

use crate::report::{BASE, Better, Metric, Report};

/// How far overlayd may be behind the kernel's vxlan before something must be broken rather than slow.
const BEHIND: f64 = 20.0;

/// What is wrong with a report, in words.
pub(crate) fn faults(report: &Report) -> Vec<String> {
    let mut faults = Vec::new();
    for world in &report.worlds {
        for metric in world.metrics.iter().filter(|metric| is_measure(&metric.id)) {
            for contender in &report.contenders {
                let failed = metric
                    .cells
                    .get(&contender.id)
                    .is_some_and(|cell| cell.values.iter().all(Option::is_none));
                if failed || lacks(metric, &contender.id) {
                    faults.push(format!(
                        "{}: {} of {} was not measured",
                        world.id, metric.title, contender.title
                    ));
                }
            }
            // Latency is the scheduler's on a busy machine.
            let is_rate = metric.better == Better::Higher;
            if let Some(ratio) = metric.ratio("overlayd").filter(|ratio| is_rate && 1.0 / ratio > BEHIND) {
                faults.push(format!(
                    "{}: {} is {ratio:.3} times that of {}",
                    world.id,
                    metric.title,
                    report.title(BASE)
                ));
            }
        }
    }
    faults
}

/// Whether this is a measure itself, not a figure beside it. What carriers cost when idle and the plugin's time are not for all contenders.
fn is_measure(id: &str) -> bool {
    !id.contains('.') && id != "idle" && !id.starts_with("cni")
}

/// Whether there is no value, or none of a rate. Nothing lost is a value.
fn lacks(metric: &Metric, contender: &str) -> bool {
    metric.median(contender).is_none_or(|median| metric.better == Better::Higher && median <= 0.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::{Cell, Contender, Machine, SCHEMA, World};

    /// One measure with these values of the kernel's vxlan and of overlayd.
    fn report(kernel: Option<f64>, ours: Option<f64>) -> Report {
        let cell = |value| Cell { values: vec![value], disturbed: vec![false], ..Cell::default() };
        let contender = |id: &str| Contender { id: id.into(), title: id.into() };
        let cells = [(BASE, kernel), ("overlayd", ours)].map(|(id, value)| (id.to_owned(), cell(value)));
        let mut report = Report {
            schema: SCHEMA.into(),
            command: String::new(),
            started: 0,
            seconds: 0.0,
            seed: 0,
            rounds: 1,
            window: 1.0,
            machine: Machine { kernel: String::new(), cpu: String::new(), cpus: 1, memory: 0, load: 0.0 },
            contenders: vec![contender(BASE), contender("overlayd")],
            missing: Vec::new(),
            worlds: vec![World {
                id: "l1".into(),
                title: "L1".into(),
                uplink: BTreeMap::new(),
                metrics: vec![Metric {
                    id: "tcp_1".into(),
                    title: "TCP".into(),
                    unit: "Gbit/s".into(),
                    better: Better::Higher,
                    cells: cells.into(),
                }],
                distributions: BTreeMap::new(),
            }],
        };
        report.settle();
        report
    }

    #[test]
    fn a_slow_machine_is_no_fault_and_a_broken_way_is() {
        assert_eq!(faults(&report(Some(30.0), Some(3.0))), Vec::<String>::new());
        assert_eq!(faults(&report(Some(30.0), Some(1.0))).len(), 1);
        assert_eq!(faults(&report(Some(30.0), None)).len(), 1);
        assert_eq!(faults(&report(None, None)).len(), 2);
    }
}

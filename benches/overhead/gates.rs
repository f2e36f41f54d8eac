//! What overlayd promises: bounds on its figures as ratios to the kernel's vxlan, of the same run.

use crate::report::{BASE, Better, Report};

/// One promise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    world: &'static str,
    metric: &'static str,
    against: Against,
    better: Better,
    /// What must be reached.
    pub(crate) gate: f64,
    /// What should be.
    pub(crate) stretch: f64,
}

/// What a figure is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    Kernel,
    OnePacket,
    Nothing,
}

const fn more(world: &'static str, metric: &'static str, gate: f64, stretch: f64) -> Gate {
    Gate { world, metric, against: Against::Kernel, better: Better::Higher, gate, stretch }
}

const fn less(world: &'static str, metric: &'static str, gate: f64, stretch: f64) -> Gate {
    Gate { world, metric, against: Against::Kernel, better: Better::Lower, gate, stretch }
}

const fn times_one_packet(world: &'static str, gate: f64) -> Gate {
    Gate { world, metric: "tcp_1", against: Against::OnePacket, better: Better::Higher, gate, stretch: 6.0 }
}

/// ADD beside that of the reference plugins.
const fn quick_add(world: &'static str) -> Gate {
    let metric = crate::adds::RATIO;
    Gate { world, metric, against: Against::Nothing, better: Better::Lower, gate: 0.5, stretch: 0.33 }
}

const fn lossless(world: &'static str) -> Gate {
    Gate {
        world,
        metric: "paced_200k.loss",
        against: Against::Nothing,
        better: Better::Lower,
        gate: 0.0,
        stretch: 0.0,
    }
}

const GATES: [Gate; 20] = [
    more("l1", "tcp_1", 0.50, 0.65),
    more("l2", "tcp_1", 0.70, 0.80),
    more("l1", "tcp_4", 0.25, 0.33),
    more("l2", "tcp_4", 0.85, 1.0),
    more("l1", "udp_64", 1.4, 1.8),
    more("l2", "udp_64", 1.4, 1.8),
    more("l1", "udp_1200", 1.3, 1.5),
    more("l2", "udp_1200", 1.3, 1.5),
    lossless("l1"),
    lossless("l2"),
    less("l1", "rtt_pinned", 3.0, 2.5),
    less("l2", "rtt_pinned", 3.0, 2.5),
    less("l1", "rtt_apart", 0.5, 0.3),
    less("l2", "rtt_apart", 0.5, 0.3),
    less("l1", "tcp_4.cpu", 4.5, 3.5),
    less("l2", "tcp_1.cpu", 1.8, 1.5),
    times_one_packet("l1", 5.0),
    times_one_packet("l2", 3.5),
    quick_add("l1"),
    quick_add("l2"),
];

/// A promise and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) gate: Gate,
    pub(crate) title: String,
    pub(crate) value: f64,
}

impl Verdict {
    pub(crate) fn holds(&self) -> bool {
        reaches(self.gate.better, self.value, self.gate.gate)
    }

    pub(crate) fn stretches(&self) -> bool {
        reaches(self.gate.better, self.value, self.gate.stretch)
    }

    pub(crate) fn sign(&self) -> &'static str {
        if self.gate.better == Better::Higher { "≥" } else { "≤" }
    }
}

fn reaches(better: Better, value: f64, bound: f64) -> bool {
    if better == Better::Higher { value >= bound } else { value <= bound }
}

/// All promises that this report can tell about.
pub(crate) fn judge(report: &Report) -> Vec<Verdict> {
    GATES.iter().filter_map(|gate| verdict(report, *gate)).collect()
}

fn verdict(report: &Report, gate: Gate) -> Option<Verdict> {
    let world = report.worlds.iter().find(|world| world.id == gate.world)?;
    let metric = world.metric(gate.metric)?;
    let (value, against) = match gate.against {
        Against::Kernel => (metric.ratio("overlayd")?, format!("ratio to {}", report.title(BASE))),
        Against::OnePacket => (
            metric.median("overlayd")? / metric.median("one-packet")?,
            "times one packet per call".to_owned(),
        ),
        Against::Nothing => (metric.median("overlayd")?, metric.unit.clone()),
    };
    let mut title = format!("{} {}", gate.world.to_uppercase(), metric.title);
    if !against.is_empty() {
        title = format!("{title}, {against}");
    }
    Some(Verdict { gate, title, value })
}

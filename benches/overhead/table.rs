//! The report as text.

use std::fmt::Write as _;

use crate::gates;
use crate::report::{BASE, Report, World};

/// Columns of a contender: median and range, ratio.
const WIDTH: usize = 30;

pub(crate) fn draw(report: &Report) -> String {
    let mut text = String::new();
    for world in &report.worlds {
        draw_world(&mut text, report, world);
    }
    let verdicts = gates::judge(report);
    if !verdicts.is_empty() {
        let _ = writeln!(text, "\n{:<70} {:>10} {:>9} {:>9}", "Gates", "measured", "gate", "stretch");
    }
    for verdict in verdicts {
        let mark = match (verdict.holds(), verdict.stretches()) {
            (_, true) => "✓✓",
            (true, false) => "✓",
            (false, false) => "✗",
        };
        let (sign, gate) = (verdict.sign(), verdict.gate);
        let _ = writeln!(
            text,
            "{:<70} {:>10} {sign} {:>7} {sign} {:>7} {mark}",
            verdict.title,
            number(verdict.value),
            number(gate.gate),
            number(gate.stretch)
        );
    }
    for missing in &report.missing {
        let _ = writeln!(text, "missing: {} ({})", missing.name, missing.reason);
    }
    text
}

fn draw_world(text: &mut String, report: &Report, world: &World) {
    let _ = writeln!(text, "\n{}", world.title);
    let _ = write!(text, "  {:<54}", "median (min-max), ratio to kernel vxlan");
    for contender in &report.contenders {
        let _ = write!(text, " {:>WIDTH$}", contender.id);
    }
    text.push('\n');
    for metric in world.metrics.iter().filter(|metric| is_shown(&metric.id)) {
        let _ = write!(text, "  {:<54}", format!("{} [{}]", metric.title, metric.unit));
        for contender in &report.contenders {
            let cell = metric.cells.get(&contender.id);
            let shown = cell.and_then(|cell| Some((cell, cell.spread?))).map_or_else(
                || "-".to_owned(),
                |(cell, spread)| {
                    let range = format!("({}-{})", number(spread.min), number(spread.max));
                    let ratio = match cell.ratio {
                        Some(ratio) if contender.id != BASE => format!(" {:.2}", ratio.median),
                        _ => String::new(),
                    };
                    let mark = if cell.disturbed.contains(&true) { "*" } else { "" };
                    format!("{} {range}{ratio}{mark}", number(spread.median))
                },
            );
            let _ = write!(text, " {shown:>WIDTH$}");
        }
        text.push('\n');
    }
    let disturbed = world
        .metrics
        .iter()
        .flat_map(|metric| metric.cells.values())
        .any(|cell| cell.disturbed.contains(&true));
    if disturbed {
        text.push_str("  * in some rounds other programs used the processor\n");
    }
}

/// The terminal gets what matters most; the documents have all.
fn is_shown(id: &str) -> bool {
    let (measure, figure) = id.split_once('.').unwrap_or((id, ""));
    match figure {
        "" => !measure.starts_with("paced"),
        "loss" | "p99" | "p999" => true,
        "cpu" => measure.starts_with("tcp") || measure.starts_with("udp"),
        "carrier_cpu" | "syscalls" | "switches" => matches!(measure, "tcp_1" | "tcp_4" | "udp_64"),
        "softirq" => measure == "tcp_4",
        "rss" => measure == "idle",
        _ => false,
    }
}

/// Three significant digits or so.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

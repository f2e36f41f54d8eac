//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::fmt::Write as _;

use crate::gates;
use crate::report::{BASE, Metric, Report, World};
use crate::stats::Spread;
use crate::table::number;

/// Widths in the drawings' own units, which the page scales.
const NAME: f64 = 105.0;
const BARS: f64 = 290.0;
const FIGURES: f64 = 115.0;
const ROW: f64 = 22.0;

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2330;--dim:#647084;--line:#d8dde5;--good:#0a7d4b;--bad:#b3261e;
--plain:#8a94a6;--kernel-vxlan:#2f6fde;--overlayd:#e0662a;--overlayd-other:#b79a1c;--one-packet:#8b5fc7;--flannel-udp:#c2417c;--wireguard-go:#12908e}
@media (prefers-color-scheme:dark){:root{--paper:#12161d;--ink:#e6eaf0;--dim:#9aa5b6;--line:#303846;--good:#4cc38a;--bad:#ff8a80;
--plain:#8d98ab;--kernel-vxlan:#6ea0ff;--overlayd:#ff9257;--overlayd-other:#d9c04a;--one-packet:#b592ee;--flannel-udp:#f07fb0;--wireguard-go:#45c9c5}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--dim:#444;--line:#bbb;--good:#065f38;--bad:#8c1d18;
--plain:#7a8496;--kernel-vxlan:#2459b8;--overlayd:#c4511a;--overlayd-other:#8f7810;--one-packet:#6d44a6;--flannel-udp:#9c2f61;--wireguard-go:#0c6f6d}
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}body{font-size:11px}details>summary{display:none}}
*{box-sizing:border-box}body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:1100px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.6rem 0 .4rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .2rem}p{margin:.3rem 0;max-width:75ch}.dim,figcaption{color:var(--dim);font-size:.87rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:1.4rem 2rem;margin:1rem 0}
figure{margin:0;min-width:0}svg{width:100%;height:auto;display:block;font:13px system-ui,sans-serif}
svg text{fill:var(--ink)}svg text.dim{fill:var(--dim);font-size:12px}svg .axis{stroke:var(--line);fill:none}svg .range{stroke:var(--ink);stroke-width:1.4}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.28rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left;white-space:normal}
th{font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
.legend span{margin-right:1.2em;white-space:nowrap}code{font-size:.9em;overflow-wrap:anywhere}details{margin:1rem 0}summary{cursor:pointer}
";

/// Bars of every world, if it was measured there: metric id.
const CHARTS: [&str; 12] = [
    "tcp_1",
    "tcp_4",
    "tcp_16",
    "tcp_1_reverse",
    "udp_64",
    "udp_1200",
    "rtt",
    "rtt_pinned",
    "rtt_apart",
    "tcp_1.cpu",
    "tcp_4.cpu",
    "connections",
];

pub(crate) fn page(report: &Report) -> String {
    let mut body = String::new();
    head(&mut body, report);
    verdicts(&mut body, report);
    for world in &report.worlds {
        section(&mut body, report, world);
    }
    method(&mut body, report);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>What the overlay costs</title><style>{STYLE}</style></head><body>\n{body}</body></html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn head(body: &mut String, report: &Report) {
    let machine = &report.machine;
    let _ = write!(
        body,
        "<h1>What the overlay costs</h1><p class=\"dim\">Linux {}, {} ({} CPUs, {:.0} GiB), {} rounds of {} s, load {:.2} at the start</p>\
         <p>Two pods on two nodes of one machine talk to each other: by plain routes, through the kernel's vxlan, through overlayd and through \
         what else there is in user space. Bars are medians, lines show the lowest and highest round; the last column is the ratio to the \
         kernel's vxlan in the same round.</p><p class=\"legend\">",
        escape(&machine.kernel),
        escape(&machine.cpu),
        machine.cpus,
        machine.memory as f64 / (1_u64 << 30) as f64,
        report.rounds,
        report.window,
        machine.load
    );
    for contender in &report.contenders {
        let (id, title) = (&contender.id, escape(&contender.title));
        let _ = write!(body, "<span><i class=\"key\" style=\"background:var(--{id})\"></i>{title}</span> ");
    }
    body.push_str("</p>\n");
}

fn verdicts(body: &mut String, report: &Report) {
    let verdicts = gates::judge(report);
    if verdicts.is_empty() {
        return;
    }
    body.push_str("<section><h2>Gates</h2><div class=\"scroll\"><table><tr><th>overlayd</th><th>measured</th><th>gate</th><th>stretch</th><th></th></tr>");
    for verdict in verdicts {
        let (class, word) = match (verdict.holds(), verdict.stretches()) {
            (_, true) => ("good", "✓ stretch"),
            (true, false) => ("good", "✓ gate"),
            (false, false) => ("bad", "✗ falls short"),
        };
        let (sign, gate) = (verdict.sign(), verdict.gate);
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{sign} {}</td><td>{sign} {}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&verdict.title),
            number(verdict.value),
            number(gate.gate),
            number(gate.stretch)
        );
    }
    body.push_str("</table></div></section>\n");
}

fn section(body: &mut String, report: &Report, world: &World) {
    let _ = write!(body, "<section><h2>{}</h2><div class=\"charts\">", escape(&world.title));
    for id in CHARTS {
        if let Some(metric) = world.metric(id) {
            bars(body, report, metric);
        }
    }
    loss_curve(body, report, world);
    for (metric, title) in [
        ("rtt", "idle"),
        ("rtt_pinned", "all on one CPU"),
        ("rtt_apart", "ends on two CPUs"),
        ("rtt_loaded", "beside a TCP stream"),
    ] {
        distribution(body, report, world, (metric, title));
    }
    body.push_str("</div>");
    all_figures(body, report, world);
    body.push_str("</section>\n");
}

fn bars(body: &mut String, report: &Report, metric: &Metric) {
    let rows: Vec<_> = report
        .contenders
        .iter()
        .filter_map(|contender| {
            let cell = metric.cells.get(&contender.id)?;
            Some((contender, cell, cell.spread?))
        })
        .collect();
    let most = rows.iter().map(|(_, _, spread)| spread.max).fold(0.0, f64::max);
    if most <= 0.0 {
        return;
    }
    let (width, height) = (NAME + BARS + FIGURES, ROW * rows.len() as f64 + 4.0);
    let hint =
        if metric.better == crate::report::Better::Higher { "more is better" } else { "less is better" };
    let title = escape(&metric.title);
    let _ = write!(
        body,
        "<figure><h3>{title} <span class=\"dim\">{}, {hint}</span></h3><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">",
        escape(&metric.unit)
    );
    for (at, (contender, cell, spread)) in rows.iter().enumerate() {
        let top = ROW * at as f64;
        let (middle, x) = (top + ROW / 2.0, |value: f64| NAME + value / most * BARS);
        let ratio = match cell.ratio {
            Some(ratio) if contender.id != BASE => format!("×{}", number(ratio.median)),
            _ => String::new(),
        };
        let mark = if cell.disturbed.contains(&true) { " *" } else { "" };
        let (left, right) = (x(spread.min), x(spread.max));
        let _ = write!(
            body,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAME}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"var(--{})\"/>\
             <path class=\"range\" d=\"M{left:.1} {middle:.1}H{right:.1}M{left:.1} {:.1}v8M{right:.1} {:.1}v8\"/>\
             <text x=\"{}\" y=\"{:.1}\">{}{mark}</text><text x=\"{width}\" y=\"{:.1}\" text-anchor=\"end\">{ratio}</text>",
            NAME - 8.0,
            middle + 4.5,
            escape(&contender.id),
            top + 4.0,
            (x(spread.median) - NAME).max(0.5),
            ROW - 8.0,
            contender.id,
            middle - 4.0,
            middle - 4.0,
            NAME + BARS + 12.0,
            middle + 4.5,
            number(spread.median),
            middle + 4.5,
        );
    }
    body.push_str("</svg></figure>\n");
}

/// A drawing with two axes.
struct Plot {
    /// Values at the left and right edge; logarithmic if `log`.
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
}

impl Plot {
    const WIDTH: f64 = 510.0;
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 46.0;
    const BOTTOM: f64 = 30.0;

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let scale = |value: f64| if self.log { value.max(1e-9).log10() } else { value };
        let (from, to) = (scale(self.x.0), scale(self.x.1));
        let across = (scale(x) - from) / (to - from);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        let right = Self::WIDTH - 12.0;
        let floor = Self::HEIGHT - Self::BOTTOM;
        (
            Self::LEFT + across.clamp(0.0, 1.0) * (right - Self::LEFT),
            floor - up.clamp(0.0, 1.0) * (floor - 10.0),
        )
    }

    fn open(&self, body: &mut String, title: &str, ticks: (&[f64], &[f64])) {
        let _ = write!(
            body,
            "<figure><h3>{title}</h3><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">",
            Self::WIDTH,
            Self::HEIGHT
        );
        for tick in ticks.0 {
            let ((x, bottom), (_, top)) = (self.at(*tick, self.y.0), self.at(*tick, self.y.1));
            let _ = write!(
                body,
                "<path class=\"axis\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/><text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                number(*tick)
            );
        }
        for tick in ticks.1 {
            let ((left, y), (right, _)) = (self.at(self.x.0, *tick), self.at(self.x.1, *tick));
            let _ = write!(
                body,
                "<path class=\"axis\" d=\"M{left:.1} {y:.1}H{right:.1}\"/><text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                y + 4.0,
                number(*tick)
            );
        }
    }

    fn line(&self, body: &mut String, contender: &str, points: impl Iterator<Item = (f64, f64)>) {
        let path: Vec<String> = points
            .map(|(x, y)| {
                let (x, y) = self.at(x, y);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let _ = write!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--{contender})\" stroke-width=\"2.4\" stroke-linejoin=\"round\"/>",
            path.join(" ")
        );
    }
}

fn loss_curve(body: &mut String, report: &Report, world: &World) {
    let rates: Vec<(f64, &Metric)> = world
        .metrics
        .iter()
        .filter_map(|metric| {
            let rate = metric.id.strip_prefix("paced_")?.strip_suffix("k.loss")?;
            Some((rate.parse().ok()?, metric))
        })
        .collect();
    let (Some(first), Some(last)) = (rates.first(), rates.last()) else { return };
    if rates.len() < 3 {
        return;
    }
    let spreads =
        || rates.iter().flat_map(|(_, metric)| metric.cells.values().filter_map(|cell| cell.spread));
    let most = spreads().map(|spread: Spread| spread.max).fold(0.0, f64::max);
    let top = [1.0, 5.0, 10.0, 20.0, 50.0].into_iter().find(|top| *top >= most).unwrap_or(100.0);
    let plot = Plot { x: (first.0, last.0), y: (0.0, top), log: false };
    let across: Vec<f64> = rates.iter().map(|(rate, _)| *rate).collect();
    let title = "UDP of 64 bytes at a given rate: % lost (over thousand packets/s sent)";
    plot.open(body, title, (&across, &[0.0, top / 4.0, top / 2.0, top * 0.75, top]));
    for contender in &report.contenders {
        let points: Vec<_> = rates
            .iter()
            .filter_map(|(rate, metric)| Some((*rate, metric.cells.get(&contender.id)?.spread?)))
            .collect();
        plot.line(body, &contender.id, points.iter().map(|(rate, spread)| (*rate, spread.median)));
        for (rate, spread) in points {
            let ((x, low), (_, high)) = (plot.at(rate, spread.min), plot.at(rate, spread.max));
            let _ = write!(
                body,
                "<path d=\"M{x:.1} {low:.1}V{high:.1}\" stroke=\"var(--{})\" stroke-width=\"1.2\"/>",
                contender.id
            );
        }
    }
    body.push_str("</svg></figure>\n");
}

fn distribution(body: &mut String, report: &Report, world: &World, (metric, title): (&str, &str)) {
    let Some(contenders) = world.distributions.get(metric) else { return };
    let all = || contenders.values().flatten().copied().filter(|value| *value > 0.0);
    // The last point is the slowest of all; it would squeeze the rest.
    let high = contenders
        .values()
        .filter_map(|points| points.get(points.len().saturating_sub(2)))
        .copied()
        .fold(0.0, f64::max);
    let low = all().fold(f64::INFINITY, f64::min);
    if !low.is_finite() || high <= low {
        return;
    }
    let plot = Plot { x: (low, high), y: (0.0, 100.0), log: true };
    let ticks: Vec<f64> = [1.0, 2.0, 5.0]
        .iter()
        .flat_map(|digit| (0..6).map(move |power| digit * 10_f64.powi(power)))
        .filter(|tick| *tick >= low && *tick <= high)
        .collect();
    let title = format!("Round trip, {title}: % faster than so many microseconds");
    plot.open(body, &title, (&ticks, &[0.0, 25.0, 50.0, 75.0, 100.0]));
    for contender in &report.contenders {
        let Some(points) = contenders.get(&contender.id) else { continue };
        let last = (points.len().max(2) - 1) as f64;
        let line = points.iter().enumerate().filter(|(at, _)| *at as f64 != last);
        plot.line(body, &contender.id, line.map(|(at, value)| (*value, at as f64 / last * 100.0)));
    }
    body.push_str("</svg></figure>\n");
}

fn all_figures(body: &mut String, report: &Report, world: &World) {
    body.push_str("<details><summary>All figures: median (lowest–highest), ratio</summary><div class=\"scroll\"><table><tr><th></th>");
    for contender in &report.contenders {
        let _ = write!(body, "<th>{}</th>", escape(&contender.id));
    }
    body.push_str("</tr>");
    for metric in &world.metrics {
        let _ = write!(
            body,
            "<tr><td>{} <span class=\"dim\">{}</span></td>",
            escape(&metric.title),
            escape(&metric.unit)
        );
        for contender in &report.contenders {
            let cell = metric.cells.get(&contender.id);
            let Some((cell, spread)) = cell.and_then(|cell| Some((cell, cell.spread?))) else {
                body.push_str("<td>–</td>");
                continue;
            };
            let ratio = match cell.ratio {
                Some(ratio) if contender.id != BASE => format!(" ×{}", number(ratio.median)),
                _ => String::new(),
            };
            let mark = if cell.disturbed.contains(&true) { " *" } else { "" };
            let (median, min, max) = (number(spread.median), number(spread.min), number(spread.max));
            let _ = write!(body, "<td>{median} <span class=\"dim\">({min}–{max})</span>{ratio}{mark}</td>");
        }
        body.push_str("</tr>");
    }
    body.push_str("</table></div></details>");
}

fn method(body: &mut String, report: &Report) {
    let _ = write!(
        body,
        "<section><h2>Method</h2><p>Made by <code>{}</code> (seed {}) in {:.0} s. Nodes are network namespaces on one bridge of one machine, and share its \
         CPUs with the programs that make and take the load. All contenders stand there at the same time and are measured in turns, in an order drawn by lot in each \
         round. Bytes and packets are counted where they arrive, within a window after a warm-up. TCP uses cubic. overlayd runs with its egress \
         rules and connection tracking, flannel with rules of its own; the others run on nodes without any rule.</p>\
         <p>* marks figures of which some rounds were disturbed: other programs took more than 5 % of a CPU, or the hypervisor more than 2 %.</p>",
        escape(&report.command),
        report.seed,
        report.seconds
    );
    for world in &report.worlds {
        let changed: Vec<String> = world
            .uplink
            .iter()
            .map(|(name, on)| format!("{name} {}", if *on { "on" } else { "off" }))
            .collect();
        let list = if changed.is_empty() { "as a veth has them".to_owned() } else { changed.join(", ") };
        let _ =
            write!(body, "<p class=\"dim\">Uplink offloads of {}: {}</p>", escape(&world.id), escape(&list));
    }
    if !report.missing.is_empty() {
        body.push_str("<h3>Missing</h3><ul>");
        for missing in &report.missing {
            let _ = write!(body, "<li>{}: {}</li>", escape(&missing.name), escape(&missing.reason));
        }
        body.push_str("</ul>");
    }
    body.push_str("</section>\n");
}

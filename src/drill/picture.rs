//! The picture: one timeline per drill as SVG, written by hand, in light and dark, for somebody who was not there.
//!
//! From top to bottom: what happened, numbered flags, the lease as a band, operations that succeeded (up) and were refused
//! (down) per interval, the time from the act, and what the numbers mean with what was promised.

use super::{
    outcome::Outcome,
    promises::{Relation, Unit, Verdict},
    report::{Report, bound_words, measured_words, seconds},
    text::{count, misleads, wrapped},
    timeline::{LeaseOf, LeaseSample},
};
use crate::clock::Instant;
use std::{collections::BTreeSet, fmt::Write as _};

/// The picture is drawn in a space this wide, and scales: at 600 pixels its text is still 11 pixels high.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 975.0;
const LINE: f64 = 27.0;
const TEXT: f64 = 18.0;
const FLAG_ROW: f64 = 26.0;
const FLAG_ROWS_MAX: usize = 4;
const BAND: f64 = 34.0;
/// Between the bands of two KEK versions.
const BAND_GAP: f64 = 6.0;
const UP: f64 = 110.0;
const DOWN: f64 = 70.0;
/// Characters that fit into a line of text.
const CHARS: usize = 98;
/// Bars that are drawn: more would be thinner than a pixel.
const BARS_MAX: usize = 400;

const STYLE: &str = "\
.halo{stroke:#ffffff;stroke-width:4;stroke-linejoin:round;paint-order:stroke}\
.bg{fill:#ffffff}.fg{fill:#1b1f24}.mute{fill:#57606a}.line{stroke:#57606a}.grid{stroke:#d8dee4}\
.good{fill:#1a7f37}.bad{fill:#cf222e}.ok{fill:#2da44e}.denied{fill:#cf222e}.lapsed{fill:#8250df}\
.unreachable{fill:#bf8700}.cold{fill:#0969da}.corrupt,.other{fill:#000000}\
.active{fill:#aceebb}.grace{fill:#ffdf80}.p-denied{fill:#ffb3ad}.p-lapsed{fill:#d8b9ff}.resuming{fill:#a6d3ff}\
.unproven,.none,.stopped{fill:#d8dee4}.gone{fill:none}.aeks{fill:#1a7f37;fill-opacity:.45}.flag{stroke:#1b1f24}.bound{stroke:#cf222e}.boundtext{fill:#cf222e}\
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}.fg{fill:#e6edf3}.mute{fill:#9198a1}.line{stroke:#9198a1}\
.grid{stroke:#30363d}.good{fill:#3fb950}.bad{fill:#ff7b72}.ok{fill:#2ea043}.denied{fill:#f85149}.lapsed{fill:#a371f7}\
.unreachable{fill:#d29922}.cold{fill:#58a6ff}.corrupt,.other{fill:#ffffff}.active{fill:#1c5c30}.grace{fill:#6b5000}\
.p-denied{fill:#8e1519}.p-lapsed{fill:#553098}.resuming{fill:#0c3d75}.unproven,.none,.stopped{fill:#30363d}.flag{stroke:#e6edf3}\
.aeks{fill:#56d364;fill-opacity:.4}.bound{stroke:#ff7b72}.boundtext{fill:#ff7b72}.halo{stroke:#0d1117}}";

/// Something that happened, with its number.
struct Flag {
    at: f64,
    words: String,
    /// What was promised, and whether it was kept.
    verdict: Option<(String, Verdict)>,
}

/// The timelines of the reports as one SVG, one under the other, in light and dark.
#[must_use]
pub fn svg(reports: &[Report]) -> String {
    let mut body = String::new();
    let mut top = 0.0;
    for report in reports {
        let (part, height) = Drawing::new(report).draw();
        let _ = writeln!(body, "<g transform=\"translate(0 {top:.0})\">{part}</g>");
        top += height;
    }
    let names: Vec<_> = reports.iter().map(|report| report.finished.scenario.name()).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {top:.0}\" role=\"img\" \
         font-family=\"system-ui,'DejaVu Sans',sans-serif\" font-size=\"{TEXT}\">\n<title>keyleash drill {}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n",
        escape(&names.join(", "))
    )
}

struct Drawing<'a> {
    report: &'a Report,
    /// Milliseconds of the drill that are drawn, from its first operation.
    from_ms: f64,
    to_ms: f64,
    act_ms: f64,
    out: String,
    /// Over all lines and areas.
    words: String,
}

impl<'a> Drawing<'a> {
    fn new(report: &'a Report) -> Self {
        let timeline = &report.finished.timeline;
        let act_ms = timeline.act().map_or(0.0, |at| report.ms(at));
        Self {
            report,
            from_ms: 0.0,
            to_ms: report.ms(timeline.end).max(1.0),
            act_ms,
            out: String::new(),
            words: String::new(),
        }
    }

    fn x(&self, ms: f64) -> f64 {
        let part = (ms - self.from_ms) / (self.to_ms - self.from_ms);
        LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn ms(&self, at: Instant) -> f64 {
        self.report.ms(at)
    }

    /// The drawing and its height.
    fn draw(mut self) -> (String, f64) {
        let finished = &self.report.finished;
        let (class, verdict) = match self.report.verdict() {
            Verdict::Pass => ("good", "every promise held"),
            Verdict::Inconclusive => ("bad", "INCONCLUSIVE: THE MACHINE WAS TOO BUSY"),
            Verdict::Fail => ("bad", "A PROMISE DID NOT HOLD"),
        };
        self.text(20.0, 36.0, "fg", 24.0, "start", &format!("drill {}", finished.scenario.name()));
        self.text(980.0, 36.0, class, 22.0, "end", verdict);
        let mut y = 36.0 + LINE;
        y = self.paragraph(y, "fg", finished.scenario.story());
        let load =
            format!("{} under load; {}", count(finished.accounts.into(), "account"), self.report.settings_words());
        y = self.paragraph(y, "mute", &load);
        let flags = self.flags();
        let rows = rows(&flags.iter().map(|flag| self.x(flag.at)).collect::<Vec<_>>());
        let flags_top = y;
        let height = FLAG_ROW * (rows.iter().max().map_or(0, |row| row + 1)) as f64;
        let band = flags_top + height + 8.0;
        let leases = self.report.finished.timeline.leases();
        let bands = leases.len().max(1) as f64;
        let middle = band + bands * (BAND + BAND_GAP) + 14.0 - BAND_GAP + UP;
        let bottom = middle + DOWN + 6.0;
        self.axis(band, bottom);
        for (row, of) in leases.iter().enumerate() {
            self.band(band + row as f64 * (BAND + BAND_GAP), *of, leases.len() > 1);
        }
        self.bars(middle);
        self.bounds(band, bottom);
        for (number, (flag, row)) in flags.iter().zip(&rows).enumerate() {
            let (x, y) = (self.x(flag.at), flags_top + FLAG_ROW * *row as f64 + 10.0);
            let _ = write!(
                self.out,
                "<line class=\"flag\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke-opacity=\".55\"/>\
                 <circle class=\"fg\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"12\"/>",
                y + 12.0
            );
            self.text(x, y + 6.0, "bg", 16.0, "middle", &(number + 1).to_string());
        }
        let mut y = bottom + 3.0 * LINE + 16.0;
        y = self.legend(y);
        for (number, flag) in flags.iter().enumerate() {
            y = self.line_of(y, number + 1, flag);
        }
        for promise in
            self.report.promises.iter().filter(|promise| promise.unit != Unit::Ms || promise.verdict != Verdict::Pass)
        {
            let words = format!("{}: {} ({})", promise.what, measured_words(promise), bound_words(promise));
            let (class, mark, text) = match promise.verdict {
                Verdict::Pass => ("good", "✓", "fg"),
                Verdict::Inconclusive => ("bad", "?", "bad"),
                Verdict::Fail => ("bad", "✗", "bad"),
            };
            self.text(32.0, y, class, TEXT, "middle", mark);
            y = self.paragraph_at(50.0, y, text, &words);
        }
        y = self.paragraph(y, "mute", &self.report.count_words());
        self.out.push_str(&self.words);
        (self.out, y + 8.0)
    }

    /// What happened, in the order of time.
    fn flags(&self) -> Vec<Flag> {
        let report = self.report;
        let timeline = &report.finished.timeline;
        let undoing = timeline.undoing().map_or(0.0, |at| self.ms(at));
        let mut flags: Vec<Flag> = timeline
            .acts
            .iter()
            .map(|act| Flag { at: self.ms(act.at), words: act.what.clone(), verdict: None })
            .collect();
        for (name, words, after_undoing) in [
            ("noticed", "outage noticed: the lease is in grace", false),
            ("last-success", "last success", false),
            ("first-refusal", "first refusal", false),
            ("served-in-outage", "first refusal", false),
            ("wiped", "every AEK wiped from memory", false),
            ("first-success", "first success", true),
            ("active-again", "lease active again", true),
            ("all-back", "every account back", true),
        ] {
            let Some(promise) = report.promises.iter().find(|promise| promise.name == name) else { continue };
            let Some(measured) = promise.measured else { continue };
            let (origin, of) = if after_undoing { (undoing, "the undoing") } else { (self.act_ms, "the act") };
            flags.push(Flag {
                at: origin + measured,
                words: format!("{words}, {} after {of}", seconds(measured)),
                verdict: Some((bound_words(promise), promise.verdict)),
            });
        }
        flags.sort_by(|one, other| one.at.total_cmp(&other.at));
        flags
    }

    fn axis(&mut self, top: f64, bottom: f64) {
        let span = (self.to_ms - self.from_ms) / 1e3;
        let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1200.0]
            .into_iter()
            .find(|step| span / step <= 12.0);
        let step = step.unwrap_or(3600.0) * 1e3;
        // Adding 0 makes 0 of -0.
        let first = ((self.from_ms - self.act_ms) / step).ceil() + 0.0;
        let mut tick = first * step;
        while self.act_ms + tick <= self.to_ms {
            let x = self.x(self.act_ms + tick);
            let _ = write!(
                self.out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
            );
            let label = if step >= 60_000.0 { format!("{:.0} min", tick / 60e3) } else { format!("{} s", tick / 1e3) };
            // At the left edge stands what they are.
            if x > LEFT + 20.0 {
                self.text(x, bottom + 20.0, "mute", 16.0, "middle", &label);
            }
            tick += step;
        }
        self.text(LEFT - 12.0, bottom + 20.0, "mute", 16.0, "end", "time from act");
    }

    /// A lease; where there are several, with the part of all AEKs that is in memory under it.
    fn band(&mut self, top: f64, of: LeaseOf, is_one_of_several: bool) {
        let name = match of {
            LeaseOf::Node(node) => format!("node {node}"),
            LeaseOf::KekVersion(version) if is_one_of_several => format!("KEK version {version}"),
            LeaseOf::KekVersion(_) => "lease".into(),
        };
        self.text(LEFT - 12.0, top + 23.0, "fg", TEXT, "end", &name);
        let timeline = &self.report.finished.timeline;
        let samples: Vec<_> = timeline.samples(of).collect();
        let mut spans: Vec<(f64, String)> = Vec::new();
        for sample in &samples {
            if spans.last().is_none_or(|(_, phase)| *phase != sample.phase) {
                spans.push((self.ms(sample.at), sample.phase.clone()));
            }
        }
        let mut words = Vec::new();
        for (index, (from, phase)) in spans.iter().enumerate() {
            let to = spans.get(index + 1).map_or(self.to_ms, |next| next.0);
            let (x, width) = (self.x(*from), (self.x(to) - self.x(*from)).max(1.0));
            let class = phase_class(phase);
            let _ = write!(
                self.out,
                "<rect class=\"{}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAND}\"/>",
                escape(&class)
            );
            let word = phase_words(phase).to_owned();
            // Where it does not fit, the colour says it.
            if width > 11.0 * word.len() as f64 {
                words.push((x + width / 2.0, word));
            }
        }
        if is_one_of_several {
            self.aeks(top, &samples);
        }
        for (x, word) in words {
            self.text(x, top + 23.0, "fg", TEXT, "middle", &word);
        }
    }

    /// How many of all AEKs were in memory, as an area over the band.
    fn aeks(&mut self, top: f64, samples: &[&LeaseSample]) {
        let most =
            self.report.finished.timeline.lease.iter().map(|sample| sample.aeks).max().unwrap_or(0).max(1) as f64;
        let bottom = top + BAND;
        let Some(first) = samples.first() else { return };
        let mut path = format!("M{:.1} {bottom:.1}", self.x(self.ms(first.at)));
        for sample in samples {
            let _ = write!(path, "H{:.1}V{:.1}", self.x(self.ms(sample.at)), bottom - sample.aeks as f64 / most * BAND);
        }
        let _ = write!(self.out, "<path class=\"aeks\" d=\"{path}H{:.1}V{bottom:.1}Z\"/>", self.x(self.to_ms));
    }

    fn bars(&mut self, middle: f64) {
        let timeline = &self.report.finished.timeline;
        let together = timeline.intervals.len().div_ceil(BARS_MAX).max(1);
        let interval_ms = timeline.interval.as_secs_f64() * 1e3 * together as f64;
        let bars: Vec<[u64; Outcome::COUNT]> = timeline
            .intervals
            .chunks(together)
            .map(|chunk| {
                let mut sum = [0; Outcome::COUNT];
                for counts in chunk {
                    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
                sum
            })
            .collect();
        let of = |counts: &[u64; Outcome::COUNT], outcome: Outcome| counts.get(outcome as usize).copied().unwrap_or(0);
        let refused = |counts: &[u64; Outcome::COUNT]| counts.iter().skip(1).sum::<u64>();
        let up_max = bars.iter().map(|counts| of(counts, Outcome::Ok)).max().unwrap_or(0).max(1) as f64;
        let down_max = bars.iter().map(refused).max().unwrap_or(0).max(1) as f64;
        for (index, counts) in bars.iter().enumerate() {
            let x = self.x(index as f64 * interval_ms);
            let width = (self.x((index + 1) as f64 * interval_ms) - x - 0.4).max(0.6);
            let height = of(counts, Outcome::Ok) as f64 / up_max * UP;
            if height > 0.0 {
                let y = middle - height;
                let _ = write!(
                    self.out,
                    "<rect class=\"ok\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
                );
            }
            let mut y = middle + 1.0;
            for outcome in Outcome::ALL.into_iter().skip(1) {
                // One refusal among many is seen.
                let height = match of(counts, outcome) {
                    0 => continue,
                    count => (count as f64 / down_max * DOWN).max(1.5),
                };
                let class = outcome.name();
                let _ = write!(
                    self.out,
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
                );
                y += height;
            }
        }
        let _ = write!(
            self.out,
            "<line class=\"line\" x1=\"{LEFT}\" y1=\"{middle:.1}\" x2=\"{RIGHT}\" y2=\"{middle:.1}\"/>"
        );
        let per_second = 1e3 / interval_ms.max(1.0);
        self.text(LEFT - 12.0, middle - UP + 34.0, "fg", TEXT, "end", "succeeded");
        self.text(
            LEFT - 12.0,
            middle - UP + 56.0,
            "mute",
            15.0,
            "end",
            &format!("max {}/s", short(up_max * per_second)),
        );
        let any_refused = bars.iter().any(|counts| refused(counts) > 0);
        let words = if any_refused { format!("max {}/s", short(down_max * per_second)) } else { "none".into() };
        self.text(LEFT - 12.0, middle + 32.0, "fg", TEXT, "end", "refused");
        self.text(LEFT - 12.0, middle + 54.0, "mute", 15.0, "end", &words);
    }

    /// The promised bounds, as dashed lines.
    fn bounds(&mut self, top: f64, bottom: f64) {
        let timeline = &self.report.finished.timeline;
        let undoing = timeline.undoing().map_or(0.0, |at| self.ms(at));
        // In rows of their own: the two may stand close to each other.
        for (name, origin, words, row) in [
            ("last-success", self.act_ms, "refused within", 0.0),
            ("first-success", undoing, "back within", 1.0),
            ("active-again", undoing, "active within", 1.0),
        ] {
            let Some(promise) = self.report.promises.iter().find(|promise| promise.name == name) else { continue };
            let at = origin + promise.bound;
            if promise.relation != Relation::AtMost || at > self.to_ms {
                continue;
            }
            let x = self.x(at);
            let _ = write!(
                self.out,
                "<line class=\"bound\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke-width=\"2.5\" stroke-dasharray=\"7 5\"/>",
                bottom + 46.0 + 20.0 * row
            );
            // Near the right edge there is room on the left only.
            let (anchor, beside) = if x > RIGHT - 180.0 { ("end", x - 6.0) } else { ("start", x + 6.0) };
            let words = format!("{words} {}", seconds(promise.bound));
            self.text(beside, bottom + 42.0 + 20.0 * row, "boundtext", 16.0, anchor, &words);
        }
    }

    fn legend(&mut self, y: f64) -> f64 {
        let mut x = 20.0;
        let counts = |outcome: &Outcome| self.report.finished.timeline.operations(*outcome) > 0;
        let seen: Vec<_> = Outcome::ALL.into_iter().filter(counts).collect();
        for outcome in seen {
            let _ = write!(
                self.out,
                "<rect class=\"{}\" x=\"{x:.0}\" y=\"{:.0}\" width=\"16\" height=\"16\"/>",
                outcome.name(),
                y - 14.0
            );
            self.text(x + 22.0, y, "fg", TEXT, "start", outcome.name());
            x += 60.0 + 10.5 * outcome.name().len() as f64;
        }
        self.text(x, y, "mute", TEXT, "start", "per second; up and down have scales of their own");
        let (mut x, mut y) = (20.0, y + LINE);
        let phases: BTreeSet<_> = self.report.finished.timeline.lease.iter().map(|sample| &*sample.phase).collect();
        for phase in phases.into_iter().filter(|phase| *phase != "gone") {
            let (class, words) = (phase_class(phase), format!("lease {}", phase_words(phase)));
            let width = 44.0 + 10.0 * words.len() as f64;
            if x + width > RIGHT {
                (x, y) = (20.0, y + LINE);
            }
            let _ = write!(
                self.out,
                "<rect class=\"{}\" x=\"{x:.0}\" y=\"{:.0}\" width=\"16\" height=\"16\"/>",
                escape(&class),
                y - 14.0
            );
            self.text(x + 22.0, y, "fg", TEXT, "start", &words);
            x += width;
        }
        (x, y) = (20.0, y + LINE);
        if self.report.finished.timeline.leases().len() > 1 {
            let _ = write!(
                self.out,
                "<rect class=\"aeks\" x=\"{x:.0}\" y=\"{:.0}\" width=\"16\" height=\"16\"/>",
                y - 14.0
            );
            self.text(x + 22.0, y, "fg", TEXT, "start", "AEKs in memory under the lease");
            x += 400.0;
        }
        let _ = write!(
            self.out,
            "<line class=\"bound\" x1=\"{x:.0}\" y1=\"{0:.0}\" x2=\"{1:.0}\" y2=\"{0:.0}\" stroke-width=\"2.5\" stroke-dasharray=\"7 5\"/>",
            y - 6.0,
            x + 36.0
        );
        self.text(x + 44.0, y, "fg", TEXT, "start", "promised, without the slack");
        y + LINE + 4.0
    }

    fn line_of(&mut self, y: f64, number: usize, flag: &Flag) -> f64 {
        let _ = write!(self.out, "<circle class=\"fg\" cx=\"32\" cy=\"{:.1}\" r=\"12\"/>", y - 6.0);
        self.text(32.0, y, "bg", 16.0, "middle", &number.to_string());
        let Some((promised, verdict)) = &flag.verdict else { return self.paragraph_at(50.0, y, "fg", &flag.words) };
        let (mark, class) = match verdict {
            Verdict::Pass => ("✓", "fg"),
            Verdict::Inconclusive => ("? INCONCLUSIVE:", "bad"),
            Verdict::Fail => ("✗ NOT KEPT:", "bad"),
        };
        self.paragraph_at(50.0, y, class, &format!("{} {mark} {promised}", flag.words))
    }

    fn paragraph(&mut self, y: f64, class: &str, words: &str) -> f64 {
        self.paragraph_at(20.0, y, class, words)
    }

    fn paragraph_at(&mut self, x: f64, mut y: f64, class: &str, words: &str) -> f64 {
        for line in wrapped(words, CHARS) {
            self.text(x, y, class, TEXT, "start", &line);
            y += LINE;
        }
        y
    }

    fn text(&mut self, x: f64, y: f64, class: &str, size: f64, anchor: &str, words: &str) {
        let words = escape(words);
        // A number in a flag stands on its own ground.
        let halo = if class == "bg" { "" } else { " halo" };
        let _ = writeln!(
            self.words,
            "<text class=\"{class}{halo}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{words}</text>"
        );
    }
}

fn phase_class(phase: &str) -> String {
    match phase {
        "denied" | "lapsed" => format!("p-{phase}"),
        other => other.to_owned(),
    }
}

fn phase_words(phase: &str) -> &str {
    match phase {
        "none" => "no process",
        "gone" => "no account needs it",
        phase => phase,
    }
}

/// Flags that would cover each other stand in rows of their own, as far as there are rows.
fn rows(xs: &[f64]) -> Vec<usize> {
    let mut ends = [f64::NEG_INFINITY; FLAG_ROWS_MAX];
    let mut rows = Vec::with_capacity(xs.len());
    for x in xs {
        let free = ends.iter().position(|end| x - end >= 27.0).unwrap_or(FLAG_ROWS_MAX - 1);
        if let Some(end) = ends.get_mut(free) {
            *end = *x;
        }
        rows.push(free);
    }
    rows
}

/// A rate that is read at a glance.
fn short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.1}M", rate / 1e6),
        rate if rate >= 1e3 => format!("{:.0}k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

/// Text that is safe in XML and HTML, attributes too.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() => escaped.push(' '),
            letter if misleads(letter) => escaped.extend(letter.escape_default()),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{report::tests::finished, scenario::Scenario};

    /// Every element is closed in its order, and attributes are quoted.
    fn assert_well_formed(xml: &str) {
        let mut open = Vec::new();
        let mut rest = xml;
        while let Some(start) = rest.find('<') {
            let end = rest[start..].find('>').expect("a tag ends") + start;
            let tag = &rest[start + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_picture_of_every_scenario_is_well_formed_and_names_what_happened() {
        for scenario in Scenario::ALL {
            let report = Report::new(finished(scenario));
            let picture = svg(&[report.clone(), report.clone()]);
            assert_well_formed(&picture);
            assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
            assert!(picture.contains(scenario.name()) && picture.contains("prefers-color-scheme:dark"));
            let (areas, words) = picture.split_once("<text").unwrap();
            let (words, next) = words.split_once("<g ").unwrap();
            assert!(
                areas.contains("<line") && !words.contains("<line") && !words.contains("<rect"),
                "text lies on top"
            );
            assert!(next.contains("<text"));
            for phase in report.finished.timeline.lease.iter().map(|sample| &*sample.phase) {
                assert!(picture.contains(&format!(">lease {}<", phase_words(phase))), "{phase} has no legend");
            }
            assert!(picture.contains("promised, without the slack"));
        }
    }

    #[test]
    fn a_promise_that_does_not_hold_is_seen_at_once() {
        let mut finished = finished(Scenario::Revocation);
        finished.timeline.unverified_bytes = 7;
        let picture = svg(&[Report::new(finished)]);
        assert!(picture.contains("A PROMISE DID NOT HOLD") && picture.contains("bytes that did not verify: 7"));
    }

    #[test]
    fn each_kek_version_and_each_node_has_a_band_of_its_own() {
        let mut finished = finished(Scenario::Rotation);
        let sample = LeaseSample { of: LeaseOf::KekVersion(2), ..finished.timeline.lease[0].clone() };
        finished.timeline.lease.push(sample);
        let picture = svg(&[Report::new(finished.clone())]);
        assert!(picture.contains("KEK version 1") && picture.contains("KEK version 2"));
        assert_eq!(picture.matches("<path class=\"aeks\"").count(), 2);
        finished.timeline.lease.iter_mut().for_each(|sample| sample.of = LeaseOf::Node(3));
        assert!(svg(&[Report::new(finished)]).contains("node 3"));
    }

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("\u{202e}"), "\\u{202e}");
        assert_eq!(escape("<a href=\"x\">&'\n"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39; ");
    }

    #[test]
    fn flags_side_by_side_stand_in_rows() {
        assert_eq!(rows(&[0.0, 5.0, 10.0, 50.0]), [0, 1, 2, 0]);
    }

    #[test]
    fn long_words_wrap() {
        assert_eq!(wrapped("aa bb cc", 5), ["aa bb", "cc"]);
    }
}

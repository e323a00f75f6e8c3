//! The report as one HTML page that needs no network: verdict lines, settings, and the picture of every drill.

use super::{
    picture::{escape, svg},
    promises::Verdict,
    report::{Report, bound_words, measured_words},
    text::count,
};
use crate::clock::utc;
use std::fmt::Write as _;

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #8884}\
.pass{color:#1a7f37}.fail{color:#cf222e;font-weight:bold}.inconclusive{color:#9a6700;font-weight:bold}svg{width:100%;height:auto}.mute{opacity:.7}\
@media(prefers-color-scheme:dark){.pass{color:#3fb950}.fail{color:#ff7b72}}";

/// The reports as one HTML page that needs no network.
#[must_use]
pub fn html(reports: &[Report]) -> String {
    let passed = reports.iter().filter(|report| report.passed()).count();
    let mut body = String::new();
    let _ = write!(
        body,
        "<h1>keyleash drills</h1>\n<p>{passed} of {} kept every promise for certain.</p>\n<table>",
        count(reports.len() as u64, "drill")
    );
    for report in reports {
        let name = report.finished.scenario.name();
        let _ = writeln!(
            body,
            "<tr><td><a href=\"#{name}\">{name}</a></td><td>{}</td><td>{}</td></tr>",
            verdict(report.verdict()),
            escape(report.finished.scenario.story())
        );
    }
    body.push_str("</table>\n");
    for report in reports {
        section(&mut body, report);
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>keyleash drills</title>\
         <style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
}

fn section(body: &mut String, report: &Report) {
    let finished = &report.finished;
    let name = finished.scenario.name();
    let token = &finished.token;
    let _ = writeln!(body, "<h2 id=\"{name}\">{name}</h2>\n{}", svg(std::slice::from_ref(report)));
    let who = finished.who.words();
    let _ = writeln!(
        body,
        "<p class=\"mute\">Token {}, serial {} ({}); profile {}; acts by {who}; begun on {}. {}. What is over \
         its promise by no more than the machine's own delay is inconclusive; counts never are.</p>\n<table><tr><th></th><th>what</th><th>measured</th><th>promised</th></tr>",
        escape(&token.label),
        escape(&token.serial),
        escape(&token.model),
        finished.profile,
        utc(finished.started_unix),
        escape(&report.settings_words()),
    );
    for promise in &report.promises {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            verdict(promise.verdict),
            escape(promise.what),
            escape(&measured_words(promise)),
            escape(&bound_words(promise))
        );
    }
    let _ = writeln!(body, "</table>\n<p>{}.</p>", escape(&report.count_words()));
    if let Some(example) = &finished.timeline.wrong_example {
        let _ = writeln!(body, "<p>A wrong outcome: {}</p>", escape(example));
    }
}

fn verdict(verdict: Verdict) -> String {
    format!("<span class=\"{}\">{}</span>", verdict.name(), verdict.word())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{report::tests::finished, scenario::Scenario};

    #[test]
    fn the_page_needs_no_network_and_escapes_what_the_token_says() {
        let page = html(&[Report::new(finished(Scenario::Revocation)), Report::new(finished(Scenario::Outage))]);
        for outside in ["src=", "href=\"http", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("begun on 1970-01-01T00:00:07Z") && !page.contains("Unix time"));
        assert!(page.contains("&lt;&amp;&quot;label&quot;&gt;") && !page.contains("<&"));
    }
}

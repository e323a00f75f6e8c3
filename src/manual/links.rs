//! What is broken in Markdown and neither a code host nor rustdoc tells: links, names of files, tables without a head.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What the files begin with that the pages name by their path.
const FOLDERS: [&str; 7] = ["src/", "tests/", "benches/", "examples/", "softhsm/", ".ci/", ".cargo/"];

/// A link, or an image, as it is written.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    /// `[text](target)`.
    Inline(String),
    /// `[label]` or `[text][label]`.
    Label(String),
    /// A file of the project that is named as code: `src/lib.rs`.
    Named(String),
}

/// What a page says of links.
#[derive(Debug, Default)]
struct Page {
    links: Vec<Link>,
    /// `[label]: target`.
    definitions: BTreeMap<String, String>,
    /// What follows `#` in a link to a heading: the same on GitHub, GitLab and in rustdoc.
    headings: BTreeSet<String>,
    /// The first line of each table that has no line of `| --- |` below it, and is shown as text.
    headless: Vec<String>,
}

impl Page {
    fn read(text: &str) -> Self {
        let (mut page, mut prose, mut fenced) = (Self::default(), String::new(), false);
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced {
            } else if let Some((label, target)) = definition(line) {
                page.definitions.insert(label.to_owned(), target.to_owned());
            } else {
                prose.push_str(line);
                prose.push('\n');
                if line.starts_with('#') {
                    page.headings.insert(slug(line.trim_start_matches('#').trim()));
                }
            }
        }
        page.links = links(&prose);
        let lines: Vec<_> = prose.lines().collect();
        let begins = |at: usize| lines[at].starts_with('|') && (at == 0 || !lines[at - 1].starts_with('|'));
        let headed = |at: usize| lines.get(at + 1).is_some_and(|line| line.starts_with("| ---"));
        let headless = (0..lines.len()).filter(|at| begins(*at) && !headed(*at));
        page.headless = headless.map(|at| lines[at].to_owned()).collect();
        page
    }
}

fn definition(line: &str) -> Option<(&str, &str)> {
    let (label, target) = line.strip_prefix('[')?.split_once("]: ")?;
    (!target.contains(' ')).then_some((label, target))
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.map(|char| if char == ' ' { '-' } else { char.to_ascii_lowercase() }).collect()
}

fn links(prose: &str) -> Vec<Link> {
    let (mut found, mut rest) = (Vec::new(), prose);
    while let Some(at) = rest.find(['`', '[', '\\']) {
        rest = &rest[at..];
        if rest.starts_with('\\') {
            rest = rest.get(2..).unwrap_or_default();
        } else if rest.starts_with('`') {
            let (code, after) = code_span(rest);
            rest = after;
            if FOLDERS.iter().any(|folder| code.starts_with(folder)) {
                found.extend(code.split_whitespace().next().map(|path| Link::Named(path.to_owned())));
            }
        } else if let Some((text, after)) = bracketed(rest) {
            rest = after;
            if let Some((target, after)) = after.strip_prefix('(').and_then(|after| after.split_once(')')) {
                found.extend(links(text)); // a picture that is a link
                found.push(Link::Inline(target.to_owned()));
                rest = after;
            } else if let Some((label, after)) = after.starts_with('[').then(|| bracketed(after)).flatten() {
                found.push(Link::Label(one_line(label)));
                rest = after;
            } else {
                found.push(Link::Label(one_line(text)));
            }
        } else {
            rest = &rest[1..];
        }
    }
    found
}

fn one_line(label: &str) -> String {
    label.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The code span at the front, and what stands behind it.
fn code_span(text: &str) -> (&str, &str) {
    let body = text.trim_start_matches('`');
    body.split_once(&text[..text.len() - body.len()]).unwrap_or(("", body))
}

/// What the brackets at the front hold, and what follows them.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut rest) = (0, text);
    while let Some(at) = rest.find(['`', '[', ']']) {
        rest = &rest[at..];
        match rest.as_bytes()[0] {
            b'`' => rest = code_span(rest).1,
            b'[' => (depth, rest) = (depth + 1, &rest[1..]),
            _ => (depth, rest) = (depth - 1, &rest[1..]),
        }
        if depth == 0 {
            let inner = &text[1..text.len() - rest.len() - 1];
            return (!inner.contains("\n\n")).then_some((inner, rest));
        }
    }
    None
}

/// What is wrong with `page`, which stands at `at`; `rustdoc` holds what its links are there, where it is a page of the manual.
fn faults(at: &Path, page: &Page, rustdoc: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let mut faults: Vec<_> = page.headless.iter().map(|line| format!("a table without a head: {line}")).collect();
    let mut used = BTreeSet::new();
    for link in &page.links {
        match link {
            Link::Label(label) => match page.definitions.contains_key(label) {
                true => _ = used.insert(label),
                false => {
                    faults.push(format!("[{label}] has no definition in the page: only rustdoc can know what it is"))
                }
            },
            Link::Named(path) if !root().join(path).exists() => faults.push(format!("`{path}` is not there")),
            Link::Named(_) => {}
            Link::Inline(target) if target.starts_with("https://") => {}
            Link::Inline(target) if rustdoc.is_some() => {
                faults.push(format!("({target}) leads nowhere in rustdoc: write a label, with its definitions in the page and in links.txt"));
            }
            Link::Inline(target) => faults.extend(fault_of(at, page, target)),
        }
    }
    for (label, target) in &page.definitions {
        if !used.contains(label) {
            faults.push(format!("the definition [{label}] is not used"));
        }
        if target.starts_with("https://") {
            continue;
        }
        faults.extend(fault_of(at, page, target));
        let Some(rustdoc) = rustdoc else { continue };
        let to_page = target.split_once(".md").map(|(page, heading)| format!("crate::manual::{page}{heading}"));
        match (rustdoc.get(label).map(|target| target.trim_start_matches("mod@")), to_page) {
            (None, _) => faults.push(format!("[{label}] is not in links.txt")),
            (Some(there), Some(here)) if there != here => {
                faults.push(format!("[{label}] is {here}, and {there} in links.txt"))
            }
            (Some(there), None) => {
                let file = fs::read_to_string(at.with_file_name(target)).unwrap_or_default();
                let name = there.rsplit("::").next().unwrap_or(there);
                if !file.contains(name) {
                    faults.push(format!("{target} has no {name}"));
                }
            }
            _ => {}
        }
    }
    faults
}

/// Why a link from `at` to `target` is broken, if it is.
fn fault_of(at: &Path, page: &Page, target: &str) -> Option<String> {
    let (path, heading) = target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    if path.contains("::") {
        return Some(format!("only rustdoc knows {target}"));
    }
    let to = at.parent()?.join(path);
    if !path.is_empty() && !to.exists() {
        return Some(format!("{target} is not there"));
    }
    let heading = heading?;
    let headings =
        if path.is_empty() { page.headings.clone() } else { Page::read(&fs::read_to_string(to).ok()?).headings };
    (!headings.contains(heading)).then(|| format!("{target}: no such heading"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|is| is == extension) => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// What rustdoc takes for each label.
fn in_rustdoc() -> BTreeMap<String, String> {
    Page::read(include_str!("links.txt")).definitions
}

#[test]
fn every_link_leads_somewhere_on_a_code_host_and_in_rustdoc() {
    let rustdoc = in_rustdoc();
    let manual = files("src/manual", "md");
    assert!(manual.len() > 8, "{manual:?}");
    let others = ["README.md", "benches/README.md", "tests/compat/README.md"].map(|path| root().join(path));
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for at in manual.iter().chain(&others) {
        let page = Page::read(&fs::read_to_string(at).unwrap());
        let of_manual = manual.contains(at);
        let faults = faults(at, &page, of_manual.then_some(&rustdoc));
        wrong.extend(faults.iter().map(|fault| format!("{}: {fault}", at.strip_prefix(root()).unwrap().display())));
        used.extend(page.definitions.into_keys().filter(|_| of_manual));
    }
    wrong.extend(
        rustdoc.keys().filter(|label| !used.contains(*label)).map(|label| format!("links.txt: [{label}] is not used")),
    );
    assert_eq!(wrong, Vec::<String>::new());
}

/// rustdoc checks the page, and not the heading.
#[test]
fn every_heading_of_the_manual_that_the_code_names_is_there() {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap();
    let code = files("src", "rs").into_iter().map(text).chain([include_str!("links.txt").to_owned()]);
    let mut seen = 0;
    for code in code {
        for link in code.split("manual::").skip(1) {
            let end = link.find(|char: char| !(char.is_alphanumeric() || "#-_".contains(char))).unwrap_or(link.len());
            if let Some((page, heading)) = link[..end].split_once('#') {
                let headings = Page::read(&text(root().join(format!("src/manual/{page}.md")))).headings;
                assert!(headings.contains(heading), "{page} has no heading {heading}");
                seen += 1;
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn each_kind_of_broken_link_is_told() {
    let rustdoc = in_rustdoc();
    let at = root().join("src/manual/page.md");
    let told = |text: &str| faults(&at, &Page::read(text), Some(&rustdoc));
    let outside = |text: &str| faults(&root().join("README.md"), &Page::read(text), None);
    let good = "# A page\n\nSee [promises], `[not]` one, \\[nor\\] this, [the `why`][a page] and [C2SP](https://c2sp.org).\n\n\
                ```\n[nothing]\n```\n\n[promises]: promises.md\n[a page]: https://a.page\n";
    assert_eq!(told(good), Vec::<String>::new());
    assert_eq!(outside("[![alt](src/manual/revocation.svg)](src/manual/drills.md#the-json)"), Vec::<String>::new());
    for (text, words) in [
        ("[promises]\n\n[promises]: promise.md", "promise.md is not there"),
        ("[promises]\n\n[promises]: promises.md#none", "promises.md#none: no such heading"),
        ("[promises]\n\n[promises]: threats.md", "is crate::manual::threats, and crate::manual::promises in links.txt"),
        ("[promises]\n\n[promises]: crate::manual::promises", "only rustdoc knows"),
        ("[`KekInfo`]\n\n[`KekInfo`]: ../clock.rs", "../clock.rs has no KekInfo"),
        ("[mod](mod.rs)", "(mod.rs) leads nowhere in rustdoc"),
        ("[own]\n\n[own]: mod.rs", "[own] is not in links.txt"),
        ("[`Engine`]", "[`Engine`] has no definition"),
        ("[the\nengine][`Engine`]", "[`Engine`] has no definition"),
        ("[promises]: promises.md", "[promises] is not used"),
        ("`src/none.rs`", "`src/none.rs` is not there"),
        ("| a |\n| --- |\n| b |\n\n| c |\n| d |", "a table without a head: | c |"),
    ] {
        assert!(told(text).iter().any(|fault| fault.contains(words)), "{text}: {:?}", told(text));
    }
    for (text, words) in [
        ("[x](src/none.rs)", "src/none.rs is not there"),
        ("[x](#none)", "#none: no such heading"),
        ("[x](crate::Engine)", "only rustdoc knows crate::Engine"),
        ("[![alt](none.svg)](README.md)", "none.svg is not there"),
    ] {
        assert!(outside(text).iter().any(|fault| fault.contains(words)), "{text}: {:?}", outside(text));
    }
}

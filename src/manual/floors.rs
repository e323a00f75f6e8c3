//! The list of floors in `architecture.md` holds: imports run down, every file stands on a floor, and none is too long.

use std::{collections::BTreeMap, fs, path::Path};

/// More than this is not read in one sitting.
const LINES_MAX: usize = 600;

/// The floor of each room, and the name of what it counts as one room with.
type Floors = BTreeMap<String, (i32, String)>;

fn floors(page: &str) -> Floors {
    let mut floors = Floors::new();
    for row in page.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, floor, rooms, ..] = cells[..] else { continue };
        let Ok(floor) = floor.parse() else { continue };
        for joined in rooms.split(',') {
            for room in joined.split('+').map(|room| room.trim().trim_matches('`')) {
                let is_new = floors.insert(room.to_owned(), (floor, joined.trim().to_owned())).is_none();
                assert!(is_new, "{room} stands on two floors");
            }
        }
    }
    floors
}

/// The first names of every path in `code` that begins with `root` (`crate::`): one, or those of a group.
fn first_names<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for after in code.match_indices(root).map(|(at, root)| &code[at + root.len()..]) {
        let Some(group) = after.strip_prefix('{') else {
            names.push(after);
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, char) in group.char_indices() {
            match char {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                char if begins && !char.is_whitespace() => {
                    names.push(&group[at..]);
                    begins = false;
                }
                _ => {}
            }
        }
    }
    let is_name = |char: char| char.is_alphanumeric() || char == '_';
    names.into_iter().map(|name| &name[..name.find(|char| !is_name(char)).unwrap_or(name.len())]).collect()
}

/// What is wrong with a file, whose `path` is as below `src/`.
fn faults(path: &str, text: &str, floors: &Floors) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{path} has {lines} lines, more than {LINES_MAX}"));
    }
    let folders = path.split('/').collect::<Vec<_>>();
    let own = folders[0].trim_end_matches(".rs");
    let Some((floor, room)) = floors.get(own) else {
        faults.push(format!("{path} stands on no floor"));
        return faults;
    };
    if ["bin", "manual"].contains(&own) || folders.iter().any(|folder| folder.trim_end_matches(".rs") == "tests") {
        return faults; // the command line sees what is public alone, pages import nothing, and tests import from where they like
    }
    // Tests stand at the end.
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    let depth = folders.len() - usize::from(path.ends_with("/mod.rs"));
    let above = first_names(&code, &"super::".repeat(depth)).into_iter().filter(|name| floors.contains_key(*name));
    for name in first_names(&code, "crate::").into_iter().chain(above) {
        match floors.get(name) {
            None => faults.push(format!("{path} imports crate::{name}, which is no room: name the room that it is in")),
            Some((_, other)) if other == room => {}
            Some((below, _)) if below < floor => {}
            Some((other, _)) => faults.push(format!("{path}, on floor {floor}, imports {name}, on floor {other}")),
        }
    }
    faults
}

/// Every file below `folder`, and what is in it.
fn each_file(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            each_file(&path, look);
        } else if path.extension().is_some_and(|is| is == "rs") {
            look(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn imports_run_down_and_every_file_stands_on_a_floor_and_is_read_in_one_sitting() {
    let (floors, src) = (floors(include_str!("architecture.md")), Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    each_file(&src, &mut |path, text| {
        let path = path.strip_prefix(&src).unwrap().to_str().unwrap();
        seen += 1;
        // The roof: it names the rooms.
        wrong.extend(faults(path, text, &floors).into_iter().filter(|_| path != "lib.rs"));
    });
    assert!(seen > 100, "{seen} files");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn each_kind_of_fault_is_told() {
    let page = "| floor | rooms |\n| 2 | `engine` |\n| 1 | `watch`, `rotate` |\n| 0 | `name` + `error`, `clock` |\n";
    let told = |path: &str, code: &str| faults(path, code, &floors(page)).join("; ");
    let sound = "//! Of crate::engine.\nuse super::Beat;\nuse crate::{\n    clock::{Instant, self},\n    name::KekName,\n};\n\
                 fn f() { crate::error::say() } // as said\n\n#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n}\n";
    assert_eq!(told("watch/tend.rs", sound), "");
    assert_eq!(told("error.rs", "use crate::name::KekName;"), "", "joined");
    assert_eq!(told("watch/tests.rs", "use crate::engine::Engine;"), "", "a test");
    for (path, code) in [
        ("watch/tend.rs", "use crate::engine::Engine;"),
        ("watch/tend.rs", "use crate::{\n    clock::{\n        Clock, Instant,\n    },\n    engine::Engine,\n};"),
        ("watch/tend.rs", "fn f(engine: &crate::engine::Engine) {}"),
        ("watch/tend.rs", "use super::super::engine::Engine;"),
        ("watch/mod.rs", "use super::engine::Engine;"),
    ] {
        assert!(told(path, code).contains("on floor 1, imports engine, on floor 2"), "an arrow that runs up: {code}");
    }
    assert!(told("watch/mod.rs", "use crate::rotate;").contains("imports rotate"), "half of a circle on one floor");
    assert!(told("watch/mod.rs", "use crate::Engine;").contains("is no room"), "past the doors");
    assert!(told("attic.rs", "").contains("stands on no floor"));
    assert!(told("clock.rs", &"\n".repeat(LINES_MAX + 1)).contains("601 lines"));
}

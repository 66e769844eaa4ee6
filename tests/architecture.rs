//! The structure that src/ARCHITECTURE.md promises: who may use whom, and what stays in its folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source file: its module at the top level, and its code without comments, strings and unit tests.
struct Source {
    path: PathBuf,
    module: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).unwrap().to_path_buf();
                let first = below.iter().next().unwrap().to_str().unwrap();
                let module = first.trim_end_matches(".rs").to_owned();
                // Unit tests may reach for whatever they like.
                let is_test = below.iter().any(|part| part == "tests.rs" || part == "tests");
                if !is_test && !["lib", "build"].contains(&module.as_str()) {
                    let text = std::fs::read_to_string(&path).unwrap();
                    found.push(Source { path: below, module, code: code(&text) });
                }
            }
        }
    }
    assert!(found.len() > 200, "the sources are below src");
    found
}

/// A file's text up to its unit tests, without what follows `//` and what is between quotes.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().unwrap_or(&"");
        if line == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        let mut is_quoted = false;
        let mut before = ' ';
        for character in line.split("//").next().unwrap_or("").chars() {
            if character == '"' && before != '\\' && before != '\'' {
                is_quoted = !is_quoted;
            } else if !is_quoted {
                code.push(character);
            }
            before = character;
        }
        code.push('\n');
    }
    code
}

/// What the code names behind `prefix`, one level deep: `a::b` for `crate::a::b` and for `crate::a::{b}`.
fn paths_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let first = name(rest);
        let Some(second) = rest[first.len()..].strip_prefix("::") else {
            found.insert(first);
            continue;
        };
        let Some(list) = second.strip_prefix('{') else {
            found.insert(format!("{first}::{}", name(second)));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for character in list.chars() {
            match character {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(format!("{first}::{}", name(item.trim())));
                    item.clear();
                    continue;
                }
                _ => {}
            }
            item.push(character);
        }
        if !item.trim().is_empty() {
            found.insert(format!("{first}::{}", name(item.trim())));
        }
    }
    found
}

/// The rows of the table of layers: the modules of each, and what they may use.
fn layers() -> Vec<(Vec<String>, Vec<String>)> {
    let text = include_str!("../src/ARCHITECTURE.md");
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let table = text.lines().skip_while(|line| !line.starts_with("| module |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        (quoted(cells[0]), quoted(cells.last().unwrap()))
    })
    .collect()
}

#[test]
fn imports_follow_the_table_of_layers() {
    let layers = layers();
    let (common, _) = layers.last().expect("the last row is for everybody");
    let row_of = |module: &str| {
        layers.iter().find(|(modules, _)| modules.iter().any(|other| other == module))
    };
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((own, allowed)) = row_of(&source.module) else {
            wrong.push(format!("{} is not in the table", source.module));
            continue;
        };
        let used = paths_behind(&source.code, "crate::");
        for path in used {
            let module = path.split("::").next().unwrap();
            // What the root has itself.
            let path = if module == "Config" { "config::Config".to_owned() } else { path.clone() };
            let module = path.split("::").next().unwrap();
            let is_named =
                |names: &[String]| names.iter().any(|name| name == module || *name == path);
            if module != "VERSION" && !is_named(own) && !is_named(allowed) && !is_named(common) {
                wrong.push(format!("{} uses {path}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against src/ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_points_down() {
    let layers = layers();
    let row_of = |module: &str| {
        layers.iter().position(|(modules, _)| modules.iter().any(|other| other == module))
    };
    for (at, (modules, allowed)) in layers.iter().enumerate() {
        for path in allowed {
            let module = path.split("::").next().unwrap();
            let row = row_of(module).unwrap_or_else(|| panic!("{module} is not in the table"));
            let is_common = at + 1 == layers.len();
            assert!(row > at || is_common, "{modules:?} may use {path}, which stands above");
        }
    }
}

#[test]
fn what_belongs_to_a_folder_stays_in_it() {
    let kept: [(&str, &[&str]); 2] =
        [("fuser::", &["fuse"]), ("io_uring::", &["aio", "check", "sandbox"])];
    for source in sources() {
        for (crate_name, modules) in kept {
            let uses = source.code.contains(&format!("use {crate_name}"))
                || source.code.contains(&format!("({crate_name}"));
            let is_in_place = modules.contains(&source.module.as_str());
            assert!(!uses || is_in_place, "{} uses {crate_name}", source.path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_where_the_architecture_says() {
    let text = include_str!("../src/ARCHITECTURE.md");
    let start = text.find("`unsafe` is allowed in").expect("it says where unsafe is allowed");
    let places = &text[start..start + text[start..].find("\n\n").unwrap()];
    let allowed: Vec<&str> = places.split('`').skip(3).step_by(2).collect();
    for source in sources() {
        let uses = source.code.contains("unsafe {") || source.code.contains("unsafe fn");
        let module = source.path.with_extension("").to_str().unwrap().replace('/', "::");
        let is_in_place = allowed
            .iter()
            .any(|place| module == *place || module.starts_with(&format!("{place}::")));
        assert!(!uses || is_in_place, "unsafe code in {}: {places}", source.path.display());
    }
}

/// The files of the engine import only from those that stand before them in its documentation: there is no circle.
#[test]
fn the_engines_files_stand_in_order() {
    let documentation = include_str!("../src/engine.rs");
    let list = documentation.split("# Files").nth(1).unwrap().split("//! #").next().unwrap();
    let order: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    let place = |file: &str| order.iter().position(|other| *other == file);
    let mut files = BTreeSet::new();
    for source in sources().iter().filter(|source| source.module == "engine") {
        let parts: Vec<_> = source.path.iter().collect();
        let [_, file] = parts[..] else { continue };
        let file = file.to_str().unwrap().trim_end_matches(".rs").to_owned();
        let own = place(&file).unwrap_or_else(|| panic!("src/engine.rs does not list {file}"));
        for path in paths_behind(&source.code, "super::") {
            let used = path.split("::").next().unwrap();
            let is_before = place(used).is_some_and(|used| used <= own);
            assert!(is_before, "engine/{file}.rs uses {used}, which is listed after it");
        }
        files.insert(file);
    }
    let listed: BTreeSet<String> = order.iter().map(|file| (*file).to_owned()).collect();
    assert_eq!(files, listed);
}

/// A number that names something has a type of its own wherever the engine is called.
#[test]
fn ids_are_types_in_the_engines_signatures() {
    let ids = ["handle", "partition", "block", "buffer", "frame", "tray", "transfer"];
    for source in sources().iter().filter(|source| source.module == "engine") {
        for signature in source.code.split("fn ").skip(1) {
            let signature = signature.split(['{', ';']).next().unwrap();
            for id in ids {
                for number in ["u16", "u32", "u64", "usize"] {
                    for shape in [format!("{id}: {number}"), format!("{id}: Option<{number}>")] {
                        let bare = signature.contains(&format!(" {shape}"))
                            || signature.contains(&format!("({shape}"));
                        assert!(!bare, "{}: fn {signature}", source.path.display());
                    }
                }
            }
        }
    }
}

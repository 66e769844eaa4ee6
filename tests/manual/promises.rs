//! The table of promises, in the README and in swapfs(7): the same rows in both, and each test that it names is there.

use std::path::Path;

use crate::Complaints;
use crate::mdoc::{Page, Word};

/// Before a test that a suite runs; ended by the suite's name, which `tests/suites/tools.sh` must be.
const IN_THE_SUITE: &str = "#[ignore = \"needs ";

const HEADING: &str = "What shows that it holds";

#[derive(Debug, PartialEq, Eq)]
struct Row {
    promise: String,
    tests: Vec<String>,
    figure: String,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

fn of_the_readme() -> Vec<Row> {
    let text = read("README.md").unwrap();
    let section = text.split(&format!("### {HEADING}\n")).nth(1).expect("the section is there");
    let rows = section.lines().take_while(|line| !line.starts_with("### "));
    let rows = rows.filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let rows = rows.skip(1).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, promise, tests, figure, _] = cells[..] else { panic!("not three cells: {line}") };
        let tests = tests.split(", ").map(|test| test.trim_matches('`').to_owned()).collect();
        Row { promise: promise.replace('`', ""), tests, figure: figure.replace('`', "") }
    });
    rows.collect()
}

fn of_the_manual() -> Vec<Row> {
    let page = Page::read("swapfs.7");
    let mut rows: Vec<Row> = Vec::new();
    for line in page.subsection(HEADING).into_iter().filter(|line| line.depth > 0) {
        if line.is_head {
            let promise = line.text.clone();
            rows.push(Row { promise, tests: Vec::new(), figure: String::new() });
            continue;
        }
        let row = rows.last_mut().expect("an item comes first");
        match &line.words[..] {
            [Word::File(test), ..] => row.tests.push(test.clone()),
            _ => row.figure = line.text.trim_end_matches('.').to_owned(),
        }
    }
    rows
}

/// `mount/stop::NAME` is a test in tests/mount/stop.rs, `model::NAME` one in tests/model.rs or tests/model/main.rs,
/// `suites/NAME` a suite, and any other path a folder of tests.
fn is_there(test: &str) -> bool {
    let Some((file, name)) = test.split_once("::") else {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(test);
        return folder.with_extension("sh").is_file() || folder.is_dir();
    };
    let text = read(&format!("tests/{file}.rs")).or_else(|| read(&format!("tests/{file}/main.rs")));
    // With a harness of its own, a file has a list.
    // Some need other programs: a suite runs them with those.
    text.is_some_and(|text| {
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.starts_with(IN_THE_SUITE)).collect();
        let text = lines.join("\n");
        text.contains(&format!("#[test]\nfn {name}()"))
            || (text.contains("tests![") && text.contains(&format!("\n    {name},\n")))
    })
}

#[test]
fn each_promise_is_tried_by_tests_that_exist() {
    let (readme, manual) = (of_the_readme(), of_the_manual());
    let mut wrong = Complaints::default();
    wrong.unless(readme.len() >= 18, || format!("README.md: {} promises", readme.len()));
    for row in &readme {
        wrong.unless(!row.tests.is_empty(), || format!("README.md: no test of: {}", row.promise));
        for test in row.tests.iter().filter(|test| !is_there(test)) {
            wrong.unless(false, || format!("README.md: there is no test {test}"));
        }
        let same = manual.iter().find(|other| other.promise == row.promise);
        wrong.unless(same.is_some(), || format!("man/swapfs.7 lacks: {}", row.promise));
        let Some(same) = same else { continue };
        wrong.unless(same.tests == row.tests, || {
            format!("man/swapfs.7: {}: other tests than in README.md", row.promise)
        });
        wrong.unless(same.figure.eq_ignore_ascii_case(&row.figure), || {
            format!("man/swapfs.7: {}: {}, not {}", row.promise, same.figure, row.figure)
        });
    }
    for row in manual.iter().filter(|row| !readme.iter().any(|r| r.promise == row.promise)) {
        wrong.unless(false, || format!("README.md lacks: {}", row.promise));
    }
    assert!(!is_there("mount/stop::nothing_of_this_name") && !is_there("suites/nothing"));
}

/// The number of tests that a figure names is that of the folder.
#[test]
fn the_hostile_tests_are_counted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mount/hostile");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count: usize =
        files.map(|file| std::fs::read_to_string(file).unwrap().matches("#[test]\n").count()).sum();
    let rows = of_the_readme();
    let row = rows.iter().find(|row| row.tests.iter().any(|test| test == "mount/hostile"));
    let figure = &row.expect("the row is there").figure;
    assert!(figure.starts_with(&format!("{count} tests, ")), "{count} tests: {figure}");
}

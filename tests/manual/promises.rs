//! The table of promises in tests/README.md: each test that it names exists. No other page repeats the table.

use std::path::Path;

use crate::Complaints;

/// Before a test that a suite runs; ended by the suite's name, which `tests/suites/tools.sh` must be.
const IN_THE_SUITE: &str = "#[ignore = \"needs ";

const PAGE: &str = "tests/README.md";

const HEADING: &str = "## Promises and their tests\n";

#[derive(Debug, PartialEq, Eq)]
struct Row {
    promise: String,
    tests: Vec<String>,
    figure: String,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

fn rows() -> Vec<Row> {
    let text = read(PAGE).unwrap();
    let section = text.split(HEADING).nth(1).expect("the section is there");
    let rows = section.lines().take_while(|line| !line.starts_with("## "));
    let rows = rows.filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let rows = rows.skip(1).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, promise, tests, figure, _] = cells[..] else { panic!("not three cells: {line}") };
        let tests = tests.split(", ").map(|test| test.trim_matches('`').to_owned()).collect();
        Row { promise: promise.to_owned(), tests, figure: figure.to_owned() }
    });
    rows.collect()
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
    let rows = rows();
    let mut wrong = Complaints::default();
    wrong.unless(rows.len() >= 18, || format!("{PAGE}: {} promises", rows.len()));
    for row in &rows {
        let tests = row.tests.iter().filter(|test| !test.is_empty());
        wrong.unless(tests.count() > 0, || format!("{PAGE}: no test of: {}", row.promise));
        for test in row.tests.iter().filter(|test| !is_there(test)) {
            wrong.unless(false, || format!("{PAGE}: there is no test {test}"));
        }
    }
    assert!(!is_there("mount/stop::nothing_of_this_name") && !is_there("suites/nothing"));
}

/// The user's pages say where the table is, and name no test themselves.
#[test]
fn the_table_stands_once() {
    let rows = rows();
    let mut wrong = Complaints::default();
    for page in ["README.md", "man/swapfs.7"] {
        let text = read(page).unwrap();
        wrong.unless(text.contains(PAGE), || format!("{page} does not name {PAGE}"));
        let named = rows.iter().flat_map(|row| &row.tests).filter(|test| test.contains("::"));
        for test in named.filter(|test| text.contains(*test)) {
            wrong.unless(false, || format!("{page} repeats the table: {test}"));
        }
    }
}

/// The number of tests that a figure names is that of the folder.
#[test]
fn the_hostile_tests_are_counted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mount/hostile");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count: usize =
        files.map(|file| std::fs::read_to_string(file).unwrap().matches("#[test]\n").count()).sum();
    let rows = rows();
    let row = rows.iter().find(|row| row.tests.iter().any(|test| test == "mount/hostile"));
    let figure = &row.expect("the row is there").figure;
    assert!(figure.starts_with(&format!("{count} tests, ")), "{count} tests: {figure}");
}

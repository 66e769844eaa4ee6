use std::path::Path;

use super::{Json, shown};
use crate::config::Settings;

/// The error of reading a file with this text, without the file's name in front.
fn error(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ds.json");
    std::fs::write(&file, text).unwrap();
    let line = Settings::new().read_file(&file).unwrap_err().to_string();
    let (_, reason) = line.split_once("/ds.json: ").expect(&line);
    reason.to_owned()
}

#[test]
fn what_is_no_json_object_is_one_line() {
    assert_eq!(error("3"), "the file is not a JSON object");
    let neither = |rest: &str| format!("neither valid JSON nor Hjson: {rest}");
    assert_eq!(
        error("train 1"),
        neither("a key with blanks in it, which needs quotes at line 1 column 7")
    );
    assert_eq!(
        error(r#"{"aio": {}} x"#),
        neither("something behind the last brace at line 1 column 13")
    );
    assert_eq!(
        error("{\"a\": 1,\n\"b\": {\"c\": 1, \"c\": 2}}"),
        "the key c stands twice at line 2 column 17"
    );
    assert_eq!(
        error(r#"{"aio": {}, "aio": {"queue_depth": 1}}"#),
        "the key aio stands twice at line 1 column 17"
    );
    assert_eq!(
        error("aio: {}\n# twice\naio: {}"),
        neither("the key aio stands twice at line 3 column 1")
    );
    assert_eq!(error(r#"{"a": 1e999}"#), neither("number out of range at line 1 column 12"));
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(error(&deep), neither("objects and arrays nested too deep at line 1 column 134"));
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(17 << 20));
    assert_eq!(error(&large), "larger than 16 MiB, which no configuration is");
}

#[test]
fn what_is_no_text_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ds.json");
    std::fs::write(&file, b"{\"aio\": \"\xff\xfe\"}").unwrap();
    let line = |path: &Path| Settings::new().read_file(path).unwrap_err().to_string();
    let shown = file.display();
    assert_eq!(line(&file), format!("{shown}: not UTF-8 text (byte 9)"));
    let folder = folder.path();
    assert_eq!(line(folder), format!("{}: Is a directory", folder.display()));
    assert_eq!(line(Path::new("/dev/zero")), "/dev/zero: not a regular file; name another");
    let long = folder.join("long.json");
    std::fs::File::create(&long).unwrap().set_len((16 << 20) + 1).unwrap();
    let shown = long.display();
    assert_eq!(line(&long), format!("{shown}: larger than 16 MiB, which no configuration is"));
}

#[test]
fn a_value_with_control_characters_is_one_line() {
    let value = Json::from("a\u{7f}b\u{85}c\n\u{1}\"é");
    assert_eq!(shown(&value), r#""a\u007fb\u0085c\n\u0001\"é""#);
}

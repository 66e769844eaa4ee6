use super::{Json, parse};

/// What DeepSpeed's reader (Python's hjson 3.1, keys that stand twice refused) makes of a text, as JSON; empty where it
/// refuses the text. Each line was read by it. Strings of several lines that begin in the first line are left out: it fails
/// at these by accident.
const CASES: &[(&str, &str)] = &[
    ("{\"a\": 1} // end", r#"{"a": 1}"#),
    ("# first\n{\"a\": 1}", r#"{"a": 1}"#),
    ("/* a */ {\"a\": /* b */ 1 /* c */}", r#"{"a": 1}"#),
    ("{\"a\": 1 # x\n}", r#"{"a": 1}"#),
    (
        "{\n  // one\n  \"aio\": {\"queue_depth\": 16, // deep\n  },\n}",
        r#"{"aio": {"queue_depth": 16}}"#,
    ),
    ("{\"a\": \"x\" // y\n}", r#"{"a": "x"}"#),
    ("{/**/}", r#"{}"#),
    ("{\"a\": 1 /* no end", ""),
    ("{\"a\": \"#no // comment /* here */\"}", r##"{"a": "#no // comment /* here */"}"##),
    ("{\"a\": 1,}", r#"{"a": 1}"#),
    ("{\"a\": [1, 2,],}", r#"{"a": [1, 2]}"#),
    ("{\"a\": 1\n\"b\": 2}", r#"{"a": 1, "b": 2}"#),
    ("{\"a\": [1\n2\n3]}", r#"{"a": [1, 2, 3]}"#),
    ("{\"a\": [1 2]}", ""),
    ("{\"a\": 1,,\"b\": 2}", ""),
    ("{,\"a\": 1}", ""),
    ("{\"a\": [,]}", ""),
    ("{\"a\": {} \"b\": []}", r#"{"a": {}, "b": []}"#),
    ("\u{feff}{\"a\": 1}", r#"{"a": 1}"#),
    ("\u{feff}a: 1", r#"{"a": 1}"#),
    ("", r#"{}"#),
    ("  \n# nothing\n", r#"{}"#),
    ("{a: 1}", r#"{"a": 1}"#),
    ("{'a': 1}", r#"{"a": 1}"#),
    ("{a : 1}", r#"{"a": 1}"#),
    ("{a b: 1}", ""),
    ("{\"a b\": 1}", r#"{"a b": 1}"#),
    ("{a-b.c_d: 1}", r#"{"a-b.c_d": 1}"#),
    ("{a\n: 1}", r#"{"a": 1}"#),
    ("{: 1}", ""),
    ("{'': 1}", r#"{"": 1}"#),
    ("{a}", ""),
    ("{a: }", ""),
    ("{a", ""),
    ("{a: 1", ""),
    ("{#c\na: 1}", r#"{"a": 1}"#),
    ("{a#b: 1}", r#"{"a#b": 1}"#),
    ("{a[0]: 1}", ""),
    ("{a,b: 1}", ""),
    ("{1: 2}", r#"{"1": 2}"#),
    ("{true: 1}", r#"{"true": 1}"#),
    ("a: 1", r#"{"a": 1}"#),
    ("a: 1\nb: 2", r#"{"a": 1, "b": 2}"#),
    ("a: 1, b: 2", r#"{"a": 1, "b": 2}"#),
    ("aio: {queue_depth: 4}\n", r#"{"aio": {"queue_depth": 4}}"#),
    ("a: 1}", ""),
    ("a", ""),
    ("a: {b: 1", ""),
    ("# c\na: 1\n\n", r#"{"a": 1}"#),
    ("{a: text\n}", r#"{"a": "text"}"#),
    ("{a: text}", ""),
    ("{a: text, b\n}", r#"{"a": "text, b"}"#),
    ("{a: text # no comment\n}", r#"{"a": "text # no comment"}"#),
    ("{a: /local_nvme\n}", r#"{"a": "/local_nvme"}"#),
    ("{a: http://x/y\n}", r#"{"a": "http://x/y"}"#),
    ("a: one two \nb: 2", r#"{"a": "one two", "b": 2}"#),
    ("a: \u{a0}x\u{a0}\n", r#"{"a": "x"}"#),
    ("{a: nvme // disk\n}", r#"{"a": "nvme // disk"}"#),
    ("a: text", r#"{"a": "text"}"#),
    ("{a: true}", r#"{"a": true}"#),
    ("{a: false, b: null}", r#"{"a": false, "b": null}"#),
    ("{a: True}", ""),
    ("{a: True\n}", r#"{"a": "True"}"#),
    ("{a: nullx\n}", r#"{"a": "nullx"}"#),
    ("a: true # yes", r#"{"a": true}"#),
    ("a: true // yes", r#"{"a": true}"#),
    ("a: true yes", r#"{"a": "true yes"}"#),
    ("a: null,b: 1", r#"{"a": null, "b": 1}"#),
    ("{a: 1e3}", r#"{"a": 1000}"#),
    ("{a: 1.5E+2}", r#"{"a": 150}"#),
    ("{a: -7}", r#"{"a": -7}"#),
    ("{a: -0}", r#"{"a": 0}"#),
    ("{a: 01}", ""),
    ("{a: 01\n}", r#"{"a": "01"}"#),
    ("{a: 1.}", ""),
    ("{a: 1.\n}", r#"{"a": "1."}"#),
    ("{a: .5\n}", r#"{"a": ".5"}"#),
    ("{a: +1\n}", r#"{"a": "+1"}"#),
    ("{a: 1_000\n}", r#"{"a": "1_000"}"#),
    ("{a: 0x10\n}", r#"{"a": "0x10"}"#),
    ("{a: 5 # five\n}", r#"{"a": 5}"#),
    ("{a: 5 // five\n}", r#"{"a": 5}"#),
    ("{a: 5 five\n}", r#"{"a": "5 five"}"#),
    ("{a: 5e\n}", r#"{"a": "5e"}"#),
    ("{a: -\n}", r#"{"a": "-"}"#),
    ("{a: 1e-1}", r#"{"a": 0.1}"#),
    ("{a: 18446744073709551615}", r#"{"a": 18446744073709551615}"#),
    ("{a: -9223372036854775808}", r#"{"a": -9223372036854775808}"#),
    ("{a: 3 \t}", r#"{"a": 3}"#),
    ("{a: NaN\n}", r#"{"a": "NaN"}"#),
    ("{a: Infinity\n}", r#"{"a": "Infinity"}"#),
    ("{a: 9007199254740993}", r#"{"a": 9007199254740993}"#),
    ("{a: 'x'}", r#"{"a": "x"}"#),
    ("{a: 'it\"s'}", r#"{"a": "it\"s"}"#),
    ("{a: \"it's\"}", r#"{"a": "it's"}"#),
    ("{a: 'x\\'y'}", r#"{"a": "x'y"}"#),
    ("{a: \"\\u00e9\\n\\/\"}", r#"{"a": "\u00e9\n/"}"#),
    ("{a: \"\\ud83d\\ude00\"}", r#"{"a": "\ud83d\ude00"}"#),
    ("{a: \"\\x41\"}", ""),
    ("{a: \"\\u12\"}", ""),
    ("{a: \"a\nb\"}", ""),
    ("{a: \"tab\tx\"}", ""),
    ("{a: \"open}", ""),
    ("{a: 'x' y: 1}", r#"{"a": "x", "y": 1}"#),
    ("{a: \"\\u00E9\"}", r#"{"a": "\u00e9"}"#),
    ("{\n  a: '''one\n  two'''\n}", r#"{"a": "one\ntwo"}"#),
    ("{\n  a: '''\n  one\n    two\n  '''\n}", r#"{"a": "one\ntwo"}"#),
    ("{a: '''open}", ""),
    ("{\n a: '''it''s'''\n}", r#"{"a": "it''s"}"#),
    ("{\r\n a: '''x\r\n y'''\r\n}", r#"{"a": "x\ny"}"#),
    ("{\n a:\n   '''\n   x\n   '''\n}", r#"{"a": "x"}"#),
    ("{\n\ta: '''\n\tx\n\t'''}", r#"{"a": "x"}"#),
    ("{\"a\": 1, \"a\": 2}", ""),
    ("a: 1\na: 2", ""),
    ("{b: {a: 1, 'a': 2}}", ""),
    ("{a: 1} b", ""),
    ("{a: 1} # b", r#"{"a": 1}"#),
    ("{a: 1}}", ""),
    ("{}{}", ""),
    ("{a: [1}", ""),
    ("{a: {b: 1]}", ""),
    ("{a: ]}", ""),
    ("{a: ,}", ""),
    ("{a: [:]}", ""),
    ("{\r\n\"a\": 1,\r\n}\r\n", r#"{"a": 1}"#),
    (
        "{\n  \"train_batch_size\": 8, // per step\n  \"zero_optimization\": {\n    \"stage\": 3,\n    # swap to the disk\n    \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"/local_nvme\",},\n  },\n  \"aio\": {block_size: 1048576, 'queue_depth': 8,},\n}\n",
        r#"{"train_batch_size": 8, "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}}, "aio": {"block_size": 1048576, "queue_depth": 8}}"#,
    ),
    (
        "{\n  aio: {\n    block_size: 1e6 # bytes\n    single_submit: false\n    overlap_events: true // both\n  }\n  zero_optimization: {\n    offload_param: {\n      device: nvme\n      nvme_path: /local_nvme\n    }\n  }\n}",
        r#"{"aio": {"block_size": 1000000, "single_submit": false, "overlap_events": true}, "zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}}}"#,
    ),
];

#[test]
fn every_text_means_what_it_means_to_deepspeed() {
    let different: Vec<String> = CASES
        .iter()
        .filter_map(|(text, expected)| {
            let found = parse(text).map(Json::Object);
            let is_same = match serde_json::from_str::<Json>(expected) {
                Ok(expected) => found.as_ref() == Ok(&expected),
                Err(_) => found.is_err(),
            };
            (!is_same).then(|| format!("{text:?}: {found:?}, not {expected:?}"))
        })
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Of what is JSON already, everything is the same.
#[test]
fn json_is_hjson() {
    for text in [
        r#"{"a": [1, -2.5, 1e10, true, null, {"b": "c\"\\\n\u0041"}], "": {}, "d": []}"#,
        r#"{"big": 18446744073709551615, "long": [[[[]]]], "text": "// # /* */ '''"}"#,
    ] {
        let json: Json = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text).map(Json::Object), Ok(json));
    }
}

#[test]
fn a_fault_is_named_with_its_line_and_column() {
    for (text, line) in [
        (
            "{\n  \"a\": 1,\n  b c: 2\n}",
            "a key with blanks in it, which needs quotes at line 3 column 5",
        ),
        (
            "{a: 1",
            "the end of the file inside of an object or an array (a string without quotes goes on to the end of its line) at line 1 column 6",
        ),
        ("é: 'open", "a string without an end at line 1 column 4"),
        ("{a: 1,\n a: 2}", "the key a stands twice at line 2 column 2"),
        ("{a: 1} b", "something behind the last brace at line 1 column 8"),
        ("/* open", "a comment without an end at line 1 column 1"),
        ("{a: ]}", "] where a value was expected at line 1 column 5"),
        ("{a: \"\\ud83d\"}", "half of a surrogate pair, which is no character at line 1 column 6"),
        ("{a: 1e999}", "number out of range at line 1 column 10"),
    ] {
        assert_eq!(parse(text).unwrap_err(), line, "{text:?}");
    }
}

/// Nothing that a file may have in it takes a stack or time without end.
#[test]
fn hostile_texts_end() {
    for open in ["[", "{a:", "[{b: "] {
        let deep = format!("a: {}", open.repeat(100_000));
        assert!(parse(&deep).unwrap_err().contains("nested too deep"), "{open}");
    }
    for many in ["t ,", "1 ,", "n}", "'", "/**/", "#\n", "-]"] {
        let _ = parse(&format!("a: {}", many.repeat(300_000)));
    }
}

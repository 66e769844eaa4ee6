//! A strict reader of Prometheus' text format (0.0.4): whatever it accepts, Prometheus accepts.

use std::collections::{BTreeMap, BTreeSet};

/// A sample: its labels, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A family: what is told of it, and its samples.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

impl Family {
    /// The value of the sample with these labels and no others.
    pub(crate) fn value(&self, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.samples.iter().find(|sample| {
            sample.labels.len() == labels.len()
                && labels
                    .iter()
                    .all(|(name, value)| sample.labels.get(*name).is_some_and(|own| own == value))
        });
        found.map(|sample| sample.value)
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let fits =
        |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || (colons && letter == b':');
    !text.is_empty() && !text.as_bytes()[0].is_ascii_digit() && text.bytes().all(fits)
}

/// The labels up to the closing brace, and what follows it.
fn labels(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut found = BTreeMap::new();
    let mut rest = text;
    loop {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {rest}"));
        assert!(is_name(name, false), "label {name:?}");
        let (mut unescaped, mut letters) = (String::new(), value.char_indices());
        let end = loop {
            match letters.next().unwrap_or_else(|| panic!("no end: {value}")) {
                (at, '"') => break at,
                (_, '\\') => match letters.next() {
                    Some((_, 'n')) => unescaped.push('\n'),
                    Some((_, letter @ ('\\' | '"'))) => unescaped.push(letter),
                    other => panic!("escape {other:?} in {value}"),
                },
                (_, letter) => unescaped.push(letter),
            }
        };
        assert!(found.insert(name.to_owned(), unescaped).is_none(), "label {name} twice");
        rest = &value[end + 1..];
        match rest.split_at_checked(1) {
            Some((",", more)) => rest = more,
            Some(("}", more)) => return (found, more),
            _ => panic!("after a label: {rest:?}"),
        }
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner),
        None => (BTreeMap::new(), rest),
    };
    assert!(is_name(name, true), "{line}");
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space: {line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        _ => value.parse().unwrap_or_else(|_| panic!("{line}")),
    };
    Sample { name: name.to_owned(), labels, value }
}

/// Which family a sample belongs to.
fn family_of<'a>(sample: &'a str, families: &BTreeMap<String, Family>) -> &'a str {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
    match base {
        Some(base) if families.get(base).is_some_and(|family| family.kind == "histogram") => base,
        _ => sample,
    }
}

/// Reads a whole text.
///
/// # Panics
/// At everything that is not as it should be.
pub(crate) fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut current, mut seen) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        assert_eq!(line, line.trim(), "no spaces around a line");
        if let Some(comment) = line.strip_prefix("# HELP ") {
            let (name, help) = comment.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(is_name(name, true) && !help.is_empty(), "{line}");
            let new = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), new).is_none(), "{name} is told twice");
            name.clone_into(&mut current);
        } else if let Some(comment) = line.strip_prefix("# TYPE ") {
            let (name, kind) = comment.split_once(' ').unwrap();
            assert_eq!(name, current, "the type follows the help");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            let family = families.get_mut(name).unwrap();
            assert!(family.kind.is_empty() && family.samples.is_empty(), "{line}");
            kind.clone_into(&mut family.kind);
        } else {
            let sample = sample(line);
            let name = family_of(&sample.name, &families).to_owned();
            assert_eq!(name, current, "samples follow their family's head: {line}");
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
            families.get_mut(&name).unwrap().samples.push(sample);
        }
    }
    families.iter().for_each(|(name, family)| check(name, family));
    families
}

/// What promtool complains about, and what a histogram must be.
fn check(name: &str, family: &Family) {
    assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name} is a {}", family.kind);
    for unit in ["_ms", "_us", "_ns", "_milliseconds", "_kib", "_mib", "_percent"] {
        assert!(!name.contains(unit), "{name} is not in base units");
    }
    if family.kind == "counter" {
        assert!(family.samples.iter().all(|sample| sample.value >= 0.0), "{name}");
    }
    if family.kind != "histogram" {
        assert!(family.samples.iter().all(|sample| !sample.labels.contains_key("le")), "{name}");
        return;
    }
    let mut series: BTreeMap<BTreeMap<String, String>, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        labels.remove("le");
        series.entry(labels).or_default().push(sample);
    }
    for samples in series.values() {
        let part = |suffix: &str| -> Vec<&&Sample> {
            samples.iter().filter(|sample| sample.name == format!("{name}{suffix}")).collect()
        };
        let buckets = part("_bucket");
        let bound = |sample: &Sample| match sample.labels["le"].as_str() {
            "+Inf" => f64::INFINITY,
            text => text.parse::<f64>().unwrap(),
        };
        for pair in buckets.windows(2) {
            assert!(bound(pair[0]) < bound(pair[1]), "{name}: bounds rise");
            assert!(pair[0].value <= pair[1].value, "{name}: counts are cumulative");
        }
        let last = buckets.last().unwrap_or_else(|| panic!("{name} has no buckets"));
        assert!(bound(last).is_infinite(), "{name}");
        let (counts, sums) = (part("_count"), part("_sum"));
        assert_eq!((counts.len(), sums.len()), (1, 1), "{name}");
        assert_eq!(last.value.to_bits(), counts[0].value.to_bits(), "{name}: +Inf is the count");
    }
}

/// What it must not accept.
#[test]
fn the_reader_is_strict() {
    let head = "# HELP a_total X.\n# TYPE a_total counter\n";
    assert_eq!(
        parse(&format!("{head}a_total{{x=\"a\\\"\"}} 1\n"))["a_total"].samples[0].labels["x"],
        "a\""
    );
    let histogram = |end: &str| {
        format!(
            "# HELP h X.\n# TYPE h histogram\nh_bucket{{le=\"1\"}} 2\nh_bucket{{le=\"+Inf\"}} 3\n\
             h_sum 1.5\n{end}"
        )
    };
    parse(&histogram("h_count 3\n"));
    for bad in [
        "a_total 1\n".to_owned(),
        format!("{head}a_total 1"),
        format!("{head}a_total x\n"),
        format!("{head}a_total 1\na_total 2\n"),
        format!("{head}a_total{{x=1}} 2\n"),
        format!("{head}{head}"),
        "# HELP a X.\n# TYPE a counter\na 1\n".to_owned(),
        histogram(""),
        histogram("h_count 2\n"),
    ] {
        let quiet = std::panic::catch_unwind(|| parse(&bad));
        assert!(quiet.is_err(), "accepted: {bad}");
    }
}

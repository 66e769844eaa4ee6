//! `swap-in`, `swap-out` and `release`, asked of a fake mount.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::fake::partitions::{PARTITIONS, SIZE};
use crate::place::{Place, assert_done, assert_failed, command, complaint};

/// A mount with so many partitions in `layers`.
struct Mount(Place);

impl Mount {
    fn new(count: u32) -> Self {
        let place = Place::new();
        assert_done(&place.mount(&format!("{PARTITIONS}{count}"), &[]));
        Self(place)
    }

    fn path(&self, name: &str) -> String {
        self.0.mnt().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, asked: &str, names: &[&str], flags: &[&str]) -> Output {
        let paths: Vec<String> = names.iter().map(|name| self.path(name)).collect();
        let mut arguments = vec![asked];
        arguments.extend(paths.iter().map(String::as_str));
        arguments.extend(flags);
        command("", &arguments).output().unwrap()
    }

    /// The objects that a successful command printed.
    fn json(&self, asked: &str, names: &[&str], flags: &[&str]) -> Json {
        let output = self.run(asked, names, &[&["--json"], flags].concat());
        assert_done(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

pub(crate) fn ten_thousand_partitions_are_asked_by_one_request_and_waited_for() {
    let mount = Mount::new(10_000);
    let start = Instant::now();
    let output = mount.run("swap-in", &["layers"], &[]);
    assert_done(&output);
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    assert!(start.elapsed() < Duration::from_secs(5));
    let all = 10_000 * SIZE;
    assert_eq!(
        mount.json("swap-in", &["layers"], &["--wait"]),
        json!([{"path": mount.path("layers"), "request": "swap_in", "status": "available",
            "resident": all, "size": all, "error": null}])
    );
}

pub(crate) fn each_request_is_waited_for_until_it_is_done() {
    let mount = Mount::new(3);
    let row = |asked: &str, status: &str, resident: u64| {
        let rows = mount.json(asked, &["good"], &["--wait"]);
        let value = asked.replace('-', "_");
        assert_eq!(
            rows,
            json!([{"path": mount.path("good"), "request": value, "status": status,
                "resident": resident, "size": SIZE, "error": null}])
        );
    };
    row("swap-in", "available", SIZE);
    row("swap-out", "available", SIZE);
    row("release", "not_available", 0);
    let rows = mount.json("swap-in", &["slow"], &[]);
    assert_eq!(rows[0]["status"], "inflight", "nobody waited");
    assert_done(&mount.run("release", &["late", "layers"], &["--wait"]));
    let rows = mount.json("swap-in", &["late", "layers/p0000[02]"], &["--wait"]);
    let names: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["late", "layers/p00000", "layers/p00002"].map(|name| mount.path(name)));
}

pub(crate) fn what_is_refused_is_one_clear_line_each_and_the_others_are_asked() {
    let mount = Mount::new(3);
    let [noroom, denied, missing, pattern] =
        ["noroom", "denied", "missing", "layers/q*"].map(|name| mount.path(name));
    assert_failed(
        &mount.run("swap-in", &["noroom"], &[]),
        &format!(
            "{noroom}: 1 MiB are more than the pool's free buffers hold, 12 of 1 MiB (16 less 4 \
             reserved)"
        ),
    );
    assert_failed(
        &mount.run("release", &["denied"], &["--wait"]),
        &format!("{denied}: Permission denied; release needs write permission"),
    );
    assert_failed(
        &mount.run("swap-out", &["missing"], &[]),
        &format!("{missing}: No such file or directory"),
    );
    assert_failed(
        &mount.run("swap-out", &["layers/q*"], &[]),
        &format!("{pattern}: nothing matches"),
    );
    let folder = mount.0.folder.path().to_str().unwrap();
    let output = command("", &["swap-in", folder]).output().unwrap();
    assert_failed(&output, &format!("{folder} is not on a swapfs mount"));
    let several = mount.run("swap-in", &["denied", "good", "missing"], &["--wait", "--json"]);
    assert_failed(
        &several,
        &format!(
            "{denied}: Permission denied; swap-in needs write permission\nswapfs: \
             {missing}: No such file or directory"
        ),
    );
    let rows: Json = serde_json::from_slice(&several.stdout).unwrap();
    assert_eq!(rows[0]["status"], Json::Null);
    assert_eq!(
        rows[0]["error"],
        format!("{denied}: Permission denied; swap-in needs write permission")
    );
    assert_eq!(rows[1]["status"], "available");
    assert_eq!(
        rows[2],
        json!({"path": missing, "request": "swap_in", "status": null, "resident": 0,
            "size": 0, "error": format!("{missing}: No such file or directory")})
    );
}

pub(crate) fn what_fails_or_takes_too_long_is_named() {
    let mount = Mount::new(3);
    let [broken, evicted, slow] = ["broken", "evicted", "slow"].map(|name| mount.path(name));
    assert_failed(
        &mount.run("swap-out", &["good", "broken", "layers"], &["--wait"]),
        &format!("{broken}: swap-out failed: EIO"),
    );
    assert_failed(
        &mount.run("swap-in", &["evicted"], &["--wait"]),
        &format!(
            "{evicted}: swap-in failed: 0 B of 1 MiB are resident, the rest found or kept no room"
        ),
    );
    let start = Instant::now();
    assert_failed(
        &mount.run("release", &["good", "slow"], &["--wait", "--timeout", "1"]),
        &format!("{slow}: release not done after 1 s"),
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    let output = mount.run("release", &["slow"], &["--timeout", "1"]);
    assert_eq!(output.status.code(), Some(2), "{}", complaint(&output));
}

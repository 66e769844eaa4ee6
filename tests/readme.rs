//! README and then the tour, followed from top to bottom: their commands in the order in which they are printed, as root, in a
//! mount namespace whose /mnt, /var/lib and /var/tmp are the test's own.

#[path = "terminal/mod.rs"]
mod terminal;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use terminal::{Terminal, pair};

/// The pages that are followed, in this order.
const PAGES: [&str; 2] = [include_str!("../README.md"), include_str!("../examples/TOUR.md")];

/// Sections that others follow, with who does.
const SECTIONS_LEFT_OUT: [(&str, &str); 1] =
    [("Install", "the suites install and package, for real")];

/// Commands that are left out elsewhere: this test is one of theirs.
const LEFT_OUT: [&str; 1] = ["cargo test --release"];

/// What the commands of a short run have instead: less of the same.
const SHORTER: [(&str, &str); 4] = [
    ("--quick --output", "--quick --io-size 4m --sweep-config sweep.json --output"),
    ("count=8192", "count=256"),
    ("--engine handle,posix,mount --loops 5", "--engine handle,posix,mount --loops 2 --io-size 4m"),
    ("--roofline /var/tmp", "--roofline /var/tmp --loops 1 --io-size 32m"),
];

const SWEEP: &str = r#"{"block_size": [1048576], "queue_depth": [4, 8], "single_submit": [false],
    "sequential_requests": [false], "io_parallel": [1]}"#;

/// A command of a page, and what is printed below it.
#[derive(Debug)]
struct Printed {
    section: String,
    command: String,
    output: Vec<String>,
}

/// All commands in their order.
fn printed() -> Vec<Printed> {
    let (mut section, mut kind) = (String::new(), None);
    let mut commands: Vec<Printed> = Vec::new();
    for line in PAGES.into_iter().flat_map(str::lines) {
        if let Some(fence) = line.strip_prefix("```") {
            kind = if kind.is_none() { Some(fence) } else { None };
            continue;
        }
        let new = |command: &str| {
            let command = command.split("  #").next().unwrap().trim_end().to_owned();
            Printed { section: section.clone(), command, output: Vec::new() }
        };
        match kind {
            None => {
                if let Some(title) = line.strip_prefix('#') {
                    section = title.trim_start_matches('#').trim().to_owned();
                }
            }
            Some("sh") => commands.push(new(line)),
            Some("console") => match line.strip_prefix("$ ") {
                Some(command) => commands.push(new(command)),
                None => commands.last_mut().unwrap().output.push(line.to_owned()),
            },
            Some(_) => {}
        }
    }
    let is_left_out = |section: &str| SECTIONS_LEFT_OUT.iter().any(|(name, _)| *name == section);
    commands.retain(|one| !is_left_out(&one.section) && !LEFT_OUT.contains(&one.command.as_str()));
    commands
}

/// The line of the script for a command. Its output goes to a file by its number.
fn line(number: usize, command: &str) -> String {
    let command = command.replace("cargo run --release -- ", "target/release/swapfs ");
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = format!(">out.{number} 2>&1");
    let call = match words.get(1) {
        // On the terminal, where a q waits for it.
        Some(&"top") => format!("{command} 2>out.{number}"),
        // Until somebody interrupts it.
        Some(&"stats") if !command.contains("--count") => {
            format!("timeout --signal INT 7 {command} </dev/null {output} || [[ $? == 124 ]]")
        }
        // No group: what is in the background is waited for later.
        _ if command.ends_with('&') => {
            format!("{{ {}; }} </dev/null {output} &", command.trim_end_matches('&'))
        }
        _ => format!("{{ {command}; }} </dev/null {output}"),
    };
    match command.ends_with('&') {
        true => format!("echo {number} >at; {call}\n"),
        false => format!("echo {number} >at; {call} || exit 1\n"),
    }
}

/// Follows the pages; `short` leaves out what needs other programs and does less of the rest.
fn follow(short: bool) {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| scratch.path().join(name);
    let hidden = ["/mnt", "/var/lib", "/var/tmp"].iter().any(|hidden| at("").starts_with(hidden));
    assert!(!hidden, "the build folder lies where this test mounts its own: use another");
    for folder in ["mnt", "lib", "tmp", "bin", "target/release"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    for link in ["bin/swapfs", "target/release/swapfs"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_swapfs"), at(link)).unwrap();
    }
    std::fs::write(at("sweep.json"), SWEEP).unwrap();
    let commands = printed();
    let mut script = "set -u
        mount --bind mnt /mnt; mount --bind lib /var/lib; mount --bind tmp /var/tmp || exit 1
        trap 'timeout 60 target/release/swapfs umount /mnt/swapfs --timeout 30 || umount -l /mnt/swapfs' EXIT\n"
        .to_owned();
    for (number, one) in commands.iter().enumerate() {
        let mut command = one.command.clone();
        if short && (command.starts_with("getfattr") || command.starts_with("setfattr")) {
            continue;
        }
        for (long, shorter) in SHORTER.iter().filter(|_| short) {
            command = command.replace(long, shorter);
        }
        // What was written is on its way for a moment; whoever types takes longer.
        if ["swapfs status", "getfattr"].iter().any(|shows| command.starts_with(shows)) {
            script += "sync --file-system /mnt/swapfs\n";
        }
        write!(script, "{}", line(number, &command)).unwrap();
    }
    // Whoever has followed them to the end has nothing mounted.
    script += "left=$(findmnt --noheadings --types fuse.swapfs)\n[[ -z $left ]] || { echo \"mounted: $left\" >at; exit 1; }\ntrap - EXIT\n";
    let (mut ours, theirs) = pair(100);
    ours.write_all(b"q").unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", &script]);
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    command.current_dir(scratch.path()).env("PATH", path).env("TERM", "xterm");
    command.stdin(Stdio::from(theirs.try_clone().unwrap()));
    let (status, shown) = Terminal::on(ours, theirs, &mut command).finish();
    let text = |name: &str| std::fs::read_to_string(at(name)).unwrap_or_default();
    let last = text("at").trim().to_owned();
    let failed = last.parse::<usize>().ok().map(|number| &commands[number].command);
    let said = text(&format!("out.{last}"));
    assert!(status.success(), "{last}: {failed:?}: {said}\n{shown}");
    for (number, one) in commands.iter().enumerate() {
        is_as_printed(one, &text(&format!("out.{number}")), short);
    }
    // Asked for with setfattr, it has left the pool by then.
    let listed = if short { "0_param.tensor.swp" } else { "PARTITION" };
    assert!(shown.contains(listed), "top has shown {listed}: {shown}");
    for name in ["tuned.json", "tuned.svg", "layers.svg"] {
        assert!(at(name).is_file(), "{name}");
    }
    assert!(Path::new(&at("lib/swapfs/swap/0_param.tensor.swp")).is_file());
}

/// What is printed below a command is what it prints; of figures that differ from run to run, the heads.
fn is_as_printed(one: &Printed, output: &str, short: bool) {
    let Some(first) = one.output.first() else { return };
    if short && one.command.starts_with("getfattr") {
        return;
    }
    if one.command.contains(" stats ") {
        assert_eq!(output.lines().next(), Some(first.as_str()), "{}", one.command);
        assert_eq!(output.lines().count(), one.output.len(), "{}: {output}", one.command);
    } else if one.command.starts_with("ls ") {
        let names = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
        let printed: Vec<String> = one.output.iter().skip(1).map(|line| names(line)).collect();
        let found: Vec<String> = output.lines().skip(1).map(names).collect();
        assert_eq!(found, printed, "{output}");
    } else {
        // A mount that takes more than two seconds says so: on a busy machine that is no difference.
        let is_news = |line: &&str| !line.starts_with("swapfs: filling the pool of ");
        let output: Vec<&str> = output.trim_end().lines().filter(is_news).collect();
        assert_eq!(output, one.output, "{}", one.command);
    }
}

#[test]
fn readme_can_be_followed_from_top_to_bottom() {
    follow(true);
}

/// As it is printed, with the programs of others that it names, and as long as it takes.
#[test]
#[ignore = "needs getfattr and setfattr: tests/suites/tools.sh"]
fn readme_can_be_followed_as_it_is_printed() {
    follow(false);
}

#[test]
fn commands_are_read_rightly() {
    let commands = printed();
    let find = |text: &str| commands.iter().position(|one| one.command == text);
    let first = find("cargo run --release -- mount").unwrap();
    let session = find("swapfs mount -o list_xattr").unwrap();
    assert!(first == 0 && session > first && commands.len() > 25, "{commands:#?}");
    assert_eq!(commands[session].output.len(), 2);
    for (section, _) in SECTIONS_LEFT_OUT {
        let mut lines = PAGES.into_iter().flat_map(str::lines);
        assert!(lines.any(|line| line.trim_start_matches('#').trim() == section), "{section}");
    }
    for (long, _) in SHORTER {
        assert_eq!(commands.iter().filter(|one| one.command.contains(long)).count(), 1, "{long}");
    }
    assert!(!commands.iter().any(|one| one.command.contains('#')), "{commands:#?}");
}

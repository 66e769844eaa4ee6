//! The manual says what the program does: every command, option, default, attribute, request and error is in
//! its page, and nothing is there that is not in the program.

mod mdoc;
mod promises;

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};
use mdoc::{Line, Page, Word, command_names, flags, plain};
use swapfs::cli::{Cli, MountHelper, UmountHelper};
use swapfs::config::{Kind, OPTIONS};
use swapfs::metrics::MetricDefinition;
use swapfs::units::{format_exact, parse_size};
use swapfs::volume::{
    ControlNode, FOLDER_REQUESTS, PARTITION_NAMES, PARTITION_REQUESTS, REQUEST_NAME, ROOT_NAMES,
    ROOT_REQUESTS, SWAP_PREFIX, WAIT_NAME, metric_definitions,
};

/// What is wrong, all of it at once.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn unless(&mut self, good: bool, complaint: impl FnOnce() -> String) {
        if !good {
            self.0.push(complaint());
        }
    }

    /// `documented` and `real` are to be the same; `what` names one of them, such as "option".
    fn same(
        &mut self, page: &str, what: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>,
    ) {
        for name in real.difference(documented) {
            self.0.push(format!("man/{page}: the {what} {name} is missing"));
        }
        for name in documented.difference(real) {
            self.0.push(format!("man/{page}: {name} is described, but there is no such {what}"));
        }
    }
}

impl Drop for Complaints {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "\n{}\n", self.0.join("\n"));
        }
    }
}

fn set<I: IntoIterator<Item = S>, S: Into<String>>(names: I) -> BTreeSet<String> {
    names.into_iter().map(Into::into).collect()
}

/// Every command that can be typed, by its whole name (`config show`), with clap's definition.
fn commands() -> Vec<(String, Command)> {
    let mut cli = Cli::command();
    cli.build();
    let visible = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    let mut found = Vec::new();
    for command in cli.get_subcommands().filter(visible) {
        let inner: Vec<&Command> = command.get_subcommands().filter(visible).collect();
        match inner.is_empty() {
            true => found.push((command.get_name().to_owned(), command.clone())),
            false => found.extend(inner.into_iter().map(|inner| {
                (format!("{} {}", command.get_name(), inner.get_name()), inner.clone())
            })),
        }
    }
    found
}

/// Whether an argument is one of the mount options, which the table describes.
fn is_mount_option(arg: &Arg) -> bool {
    OPTIONS.iter().any(|option| option.name == arg.get_id().as_str() && arg.get_long().is_some())
}

/// A command's own arguments.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        !arg.is_hide_set()
            && !arg.is_global_set()
            && !is_mount_option(arg)
            && !["help", "version"].contains(&arg.get_id().as_str())
    })
}

/// Whether a command takes an option that a page writes as `flag` (`v`, `-json`).
fn takes(command: &Command, flag: &str) -> bool {
    command.get_arguments().any(|arg| match flag.strip_prefix('-') {
        Some(long) => {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(long) || aliases.contains(&long)
        }
        None => arg.get_short().is_some_and(|short| flag == short.to_string()),
    })
}

/// The lines about each command: its blocks of the synopsis, and its item of the description with the sections
/// that this refers to.
struct Described<'a> {
    synopsis: Vec<(Vec<String>, Vec<&'a Line>)>,
    items: Vec<(Vec<String>, Vec<&'a Line>)>,
}

impl<'a> Described<'a> {
    fn new(page: &'a Page) -> Self {
        let mut synopsis: Vec<(Vec<String>, Vec<&Line>)> = Vec::new();
        for line in page.section("SYNOPSIS") {
            let named = command_names(&line.words);
            match synopsis.last_mut() {
                Some(_) if line.words.first() == Some(&Word::Name) => {
                    synopsis.push((Vec::new(), vec![line]));
                }
                None => synopsis.push((Vec::new(), vec![line])),
                Some((names, lines)) => {
                    if names.is_empty() {
                        *names = named;
                    } else if !named.is_empty() {
                        // `.Cm config` and then `.Cm show | default`.
                        let whole = |outer: &String| {
                            let outer = outer.clone();
                            named.iter().map(move |inner| format!("{outer} {inner}"))
                        };
                        *names = names.iter().flat_map(whole).collect();
                    }
                    lines.push(line);
                }
            }
        }
        let mut items: Vec<(Vec<String>, Vec<&Line>)> = Vec::new();
        for line in page.section("DESCRIPTION").into_iter().filter(|line| line.depth > 0) {
            match items.last_mut() {
                Some((_, lines)) if !(line.depth == 1 && line.is_head) => lines.push(line),
                _ => items.push((command_names(&line.words), vec![line])),
            }
        }
        for (_, lines) in &mut items {
            let sections =
                lines.iter().flat_map(|line| &line.words).filter_map(|word| match word {
                    Word::Section(name) if name != "MOUNT OPTIONS" => Some(name.clone()),
                    _ => None,
                });
            let sections: BTreeSet<String> = sections.collect();
            lines.extend(sections.iter().flat_map(|name| page.section(name)));
        }
        Self { synopsis, items }
    }

    fn of(&self, command: &str) -> (Vec<&'a Line>, Vec<&'a Line>) {
        let about = |blocks: &[(Vec<String>, Vec<&'a Line>)]| {
            let of_it = blocks.iter().filter(|(names, _)| names.iter().any(|name| name == command));
            of_it.flat_map(|(_, lines)| lines.iter().copied()).collect()
        };
        (about(&self.synopsis), about(&self.items))
    }
}

/// Whether a text says a value, in whatever unit.
fn says(words: &[String], value: &str) -> bool {
    let is_it = |word: &str| {
        word == value || parse_size(value).is_some_and(|bytes| parse_size(word) == Some(bytes))
    };
    words.iter().any(|word| is_it(word))
        || words.windows(2).any(|pair| is_it(&format!("{} {}", pair[0], pair[1])))
}

#[test]
fn every_command_and_option_is_described() {
    let page = Page::read("swapfs.8");
    let described = Described::new(&page);
    let mut wrong = Complaints::default();
    for (name, command) in commands() {
        let (synopsis, item) = described.of(&name);
        wrong.unless(!synopsis.is_empty(), || {
            format!("man/swapfs.8, SYNOPSIS: the command {name} is missing")
        });
        wrong.unless(!item.is_empty(), || {
            format!("man/swapfs.8, DESCRIPTION: no item `.It Cm {name}`")
        });
        let known = flags(synopsis.iter().chain(&item).copied());
        let (words, in_synopsis) = (plain(item.iter().copied()), plain(synopsis.iter().copied()));
        for arg in arguments(&command) {
            let shown = match (arg.get_long(), arg.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, Some(short)) => format!("-{short}"),
                (None, None) => arg.get_id().to_string().to_uppercase(),
            };
            let at = format!("man/swapfs.8: {shown} of {name}");
            if let Some(long) = arg.get_long() {
                wrong.unless(known.contains(&format!("-{long}")), || format!("{at} is missing"));
            }
            if let Some(short) = arg.get_short() {
                wrong.unless(known.contains(&short.to_string()), || {
                    format!("{at}: its letter -{short} is missing")
                });
            }
            if arg.is_positional() {
                let names = arg.get_value_names().unwrap_or_default().iter();
                let missing: Vec<&str> = names
                    .flat_map(|names| names.split('|'))
                    .filter(|name| !in_synopsis.iter().chain(&words).any(|word| word == name))
                    .collect();
                wrong.unless(missing.is_empty(), || {
                    format!("{at}: the name {missing:?} is missing")
                });
            }
            let is_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
            if !is_value {
                continue;
            }
            let defaults =
                arg.get_default_values().iter().filter(|_| !arg.is_hide_default_value_set());
            for default in defaults.filter_map(|value| value.to_str()) {
                wrong.unless(says(&words, default), || {
                    format!("{at}: its default {default} is missing")
                });
            }
            for value in arg.get_possible_values().iter().filter(|value| !value.is_hide_set()) {
                let value = value.get_name();
                let is_switch = ["true", "false"].contains(&value);
                wrong.unless(is_switch || says(&words, value), || {
                    format!("{at}: its value {value} is missing")
                });
            }
        }
    }
}

#[test]
fn nothing_is_described_that_there_is_not() {
    let page = Page::read("swapfs.8");
    let described = Described::new(&page);
    let mut wrong = Complaints::default();
    let commands = commands();
    let find = |name: &str| commands.iter().find(|(other, _)| other == name).map(|found| &found.1);
    for (names, lines) in described.synopsis.iter().chain(&described.items) {
        for name in names {
            let Some(command) = find(name) else {
                wrong.unless(names.is_empty(), || {
                    format!("man/swapfs.8: {name} is described, but there is no such command")
                });
                continue;
            };
            // Heads of items and the synopsis are about this command; the text may mention others.
            let own =
                lines.iter().filter(|line| line.is_head || line.section == "SYNOPSIS").copied();
            for flag in flags(own) {
                wrong.unless(takes(command, &flag), || {
                    format!("man/swapfs.8: {name} has no option -{flag}")
                });
            }
        }
    }
    for flag in flags(&page.lines).into_iter().collect::<BTreeSet<_>>() {
        // An option's pattern, and what clap adds by itself.
        let is_placeholder = ["-long-name", "-version"].contains(&flag.as_str());
        let anybody = commands.iter().any(|(_, command)| takes(command, &flag));
        wrong.unless(is_placeholder || anybody, || {
            format!("man/swapfs.8: -{flag} is described, but no command has it")
        });
    }
}

/// The items `.It Cm NAME Pq NOTE` of a section: name, note, and the text below.
fn noted_items<'a>(page: &'a Page, section: &str) -> Vec<(&'a str, &'a str, String)> {
    let mut items: Vec<(&str, &str, String)> = Vec::new();
    for line in page.section(section) {
        let head = line.text.strip_prefix("Cm ").and_then(|head| head.split_once(" Pq "));
        match (line.is_head, head) {
            (true, Some((name, note))) => items.push((name, note, String::new())),
            (false, _) if line.depth > 0 && !items.is_empty() => {
                let (.., meaning) = items.last_mut().unwrap();
                *meaning += &format!(" {}", line.text);
            }
            _ => {}
        }
    }
    items
}

#[test]
fn the_list_of_metrics_is_the_programs() {
    let page = Page::read("swapfs.7");
    let items = noted_items(&page, "METRICS");
    let mut wrong = Complaints::default();
    wrong.same(
        page.name,
        "metric",
        &set(items.iter().map(|item| item.0)),
        &set(metric_definitions().map(MetricDefinition::name)),
    );
    for metric in metric_definitions() {
        let name = metric.name();
        let Some((_, note, meaning)) = items.iter().find(|item| item.0 == name) else { continue };
        let by = if metric.label.is_empty() { "" } else { &format!("by {}", metric.label) };
        let parts = [metric.kind.as_ref(), metric.unit.as_ref(), by];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let (at, expected) = (format!("man/{}, METRICS, {name}", page.name), parts.join(", "));
        wrong.unless(*note == expected, || format!("{at}: ({note}) is to be ({expected})"));
        wrong.unless(meaning.trim_start().starts_with(metric.help), || {
            format!("{at}: the text is to begin with: {}", metric.help)
        });
    }
}

#[test]
fn the_table_of_mount_options_is_the_programs() {
    let page = Page::read("swapfs.8");
    let rows = noted_items(&page, "MOUNT OPTIONS");
    let mut wrong = Complaints::default();
    wrong.same(
        page.name,
        "mount option",
        &set(rows.iter().map(|row| row.0)),
        &set(OPTIONS.iter().map(|option| option.name)),
    );
    for option in &OPTIONS {
        let Some((_, shown, meaning)) = rows.iter().find(|row| row.0 == option.name) else {
            continue;
        };
        let shown = shown.strip_prefix("default: ").unwrap_or_default();
        let same = match option.built_in() {
            None => shown == option.default,
            value => option.kind.parse_text(shown) == value,
        };
        let at = format!("man/swapfs.8, MOUNT OPTIONS, {}", option.name);
        wrong.unless(same, || format!("{at}: the default is {}, not {shown}", option.default));
        wrong.unless(meaning.trim_start().starts_with(option.help), || {
            format!("{at}: the text is to begin with: {}", option.help)
        });
        let words: Vec<String> = match option.kind {
            Kind::Choice(words) => words.iter().map(|word| (*word).to_owned()).collect(),
            Kind::Size { min, max, power_of_two: true } => {
                vec![format_exact(min), format_exact(max)]
            }
            _ => Vec::new(),
        };
        for word in words {
            wrong.unless(meaning.contains(&word), || format!("{at}: {word} is missing"));
        }
    }
}

/// A terminal of 80 columns shows every table of every page: what is in a row needs no more than its line. Longer texts are
/// lists of items.
#[test]
fn tables_fit_80_columns() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut tables = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let page = std::fs::read_to_string(&path).unwrap();
        for table in page.split(".Bl -column").skip(1) {
            tables += 1;
            let (head, rest) = table.split_once('\n').unwrap();
            // All but the last have the width of their examples; that one begins early enough to be read.
            let widths: Vec<usize> =
                head.split('"').skip(1).step_by(2).map(|cell| cell.len() + 4).collect();
            let before: usize = widths[..widths.len() - 1].iter().sum();
            assert!(before <= 64, "{}: {head}: the last column begins at {before}", path.display());
            for row in rest.split(".El").next().unwrap().lines().filter(|row| row.contains(" Ta "))
            {
                let last = row.rsplit(" Ta ").next().unwrap();
                assert!(last.len() <= 80, "{}: {row}", path.display());
            }
        }
    }
    assert!(tables > 0);
}

#[test]
fn the_helpers_page_has_their_options_and_those_of_mount() {
    let page = Page::read("mount.swapfs.8");
    let mut wrong = Complaints::default();
    let described = page.section("DESCRIPTION");
    let items = set(flags(described.iter().filter(|line| line.is_head).copied()));
    let helpers = [MountHelper::command(), UmountHelper::command()];
    let letters = helpers.iter().flat_map(Command::get_arguments);
    let letters = set(letters.filter_map(Arg::get_short).filter(|c| !"hV".contains(*c)));
    wrong.same(page.name, "option", &items, &letters);
    for (helper, name) in helpers.iter().zip(["mount.swapfs", "umount.fuse.swapfs"]) {
        let start = page.lines.iter().position(|line| {
            line.section == "SYNOPSIS"
                && line.words.first() == Some(&Word::Name)
                && line.text.trim() == name
        });
        let start = start.unwrap_or_else(|| panic!("man/{}: no synopsis of {name}", page.name));
        let own = page.lines[start + 1..].iter().take_while(|line| {
            line.section == "SYNOPSIS" && line.words.first() != Some(&Word::Name)
        });
        let letters = helper.get_arguments().filter_map(Arg::get_short);
        let letters = set(letters.filter(|c| !"hV".contains(*c)));
        wrong.same(page.name, &format!("option of {name}"), &set(flags(own)), &letters);
    }
    let heads = page.section("OPTIONS").into_iter().filter(|line| line.is_head);
    let names = heads.flat_map(|line| &line.words).filter_map(|word| match word {
        Word::Command(name) if !name.starts_with(['x', 'X']) => Some(name.clone()),
        _ => None,
    });
    let real = swapfs::config::standard_options().chain(["remount"]);
    wrong.same(page.name, "option of mount(8)", &set(names.filter(|name| name != "=")), &set(real));
}

#[test]
fn every_attribute_request_and_control_file_is_described() {
    let page = Page::read("swapfs.7");
    let mut wrong = Complaints::default();
    let heads = |subsection: &str| {
        let heads = page.subsection(subsection).into_iter().filter(|line| line.is_head);
        set(plain(heads).into_iter().filter(|word| word.starts_with("user.")))
    };
    let full =
        |names: &[&str]| names.iter().map(|n| format!("{SWAP_PREFIX}{n}")).collect::<Vec<_>>();
    let mut partition = set(full(&PARTITION_NAMES));
    partition.insert(WAIT_NAME.to_owned());
    wrong.same(page.name, "attribute", &heads("Attributes of a partition"), &partition);
    wrong.same(page.name, "attribute", &heads("Attributes of the root"), &set(full(&ROOT_NAMES)));
    let requests = page.subsection("Requests");
    let all = plain(requests.iter().copied());
    wrong.unless(all.iter().any(|word| word == REQUEST_NAME), || {
        format!("man/{}: {REQUEST_NAME} is missing", page.name)
    });
    let documented =
        requests.iter().filter(|line| line.is_head).flat_map(|line| command_names(&line.words));
    let real = PARTITION_REQUESTS.into_iter().chain(FOLDER_REQUESTS).chain(ROOT_REQUESTS);
    wrong.same(page.name, "request", &set(documented), &set(real));
    let files = page.section("FILES").into_iter().flat_map(|line| &line.words);
    let files = files.filter_map(|word| match word {
        Word::File(path) => path.strip_prefix("MOUNTPOINT/.swapfs/").map(str::to_owned),
        _ => None,
    });
    let real = ControlNode::FILES.iter().map(|node| node.name());
    wrong.same(page.name, "control file", &set(files), &set(real));
    use swapfs::engine::PartitionStatus::{Available, Inflight, NotAvailable};
    let statuses = plain(page.subsection("Attributes of a partition"));
    for status in [Available, Inflight, NotAvailable].map(|status| status.as_str()) {
        wrong.unless(statuses.iter().any(|word| word == status), || {
            format!("man/{}: the status {status} is missing", page.name)
        });
    }
}

/// The names of errors that the layers of the filesystem make themselves.
fn errors_made() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join("volume.rs"), src.join("fs.rs"), src.join("engine.rs")];
    let mut folders = ["volume", "fs", "engine"].map(|name| src.join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                // Tests have whatever errors they like.
                _ if path.file_stem().is_some_and(|name| name == "tests") => {}
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for line in text.split("#[cfg(test)]").next().unwrap_or_default().lines() {
            for made in ["Err(Errno::", "ok_or(Errno::", "Some(Errno::", "= Errno::"] {
                let Some((_, rest)) = line.split_once(made) else { continue };
                let letters = rest.chars().take_while(char::is_ascii_alphanumeric);
                let name: String = letters.collect();
                // An arm of a match looks at an error, and makes none.
                let is_arm = rest[name.len()..].starts_with([' ', ')'])
                    && line.contains("=>")
                    && line.find(made) < line.find("=>")
                    || line.contains(" | Errno::");
                if !is_arm {
                    names.insert(name);
                }
            }
        }
    }
    names
}

#[test]
fn every_error_that_is_made_is_described() {
    let page = Page::read("swapfs.7");
    let words = page.subsection("Errors").into_iter().filter(|line| line.is_head);
    let documented = words.flat_map(|line| &line.words).filter_map(|word| match word {
        Word::Errno(name) => Some(name.clone()),
        _ => None,
    });
    let documented = set(documented);
    let made = errors_made();
    assert!(made.len() > 10 && made.contains("ENOBUFS"), "the sources are read wrongly: {made:?}");
    let mut wrong = Complaints::default();
    for name in made.difference(&documented) {
        wrong.0.push(format!("man/swapfs.7, Errors: {name} is missing"));
    }
}

#[test]
fn exit_statuses_are_described() {
    for (page, statuses) in
        [("swapfs.8", &["0", "1", "2"][..]), ("mount.swapfs.8", &["0", "1", "32"])]
    {
        let words = plain(Page::read(page).section("EXIT STATUS"));
        for status in statuses {
            assert!(words.iter().any(|word| word == status), "man/{page}: exit status {status}");
        }
    }
}

use super::*;
use crate::units::{GIB, KIB, MIB};
use nix::mount::MsFlags;
use std::ffi::OsString;
use std::io::Write;
use tempfile::NamedTempFile;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    let file = file(text);
    let mut settings = Settings::new();
    settings.read_file(file.path())?;
    settings.build()
}

fn from_list(list: &str) -> Result<Config, ConfigError> {
    let mut settings = Settings::new();
    settings.mount_options(list, false)?;
    settings.build()
}

/// The error's text, without the temporary file's folder.
fn message(result: Result<Config, ConfigError>) -> String {
    let text = result.expect_err("must be refused").to_string();
    match text.strip_prefix('/') {
        Some(rest) => rest.split_once(": ").unwrap().1.to_owned(),
        None => text,
    }
}

#[test]
fn the_built_in_values_are_the_documented_ones() {
    let config = Config::default();
    assert_eq!((config.pool_size, config.block_size), (GIB, MIB));
    assert_eq!((config.queue_depth, config.thread_count, config.fuse_threads), (8, 1, 4));
    assert!(!config.single_submit && config.overlap_events && config.pin_memory);
    assert_eq!((config.min_swap_size, config.read_ahead), (MIB, 8 * MIB));
    assert_eq!(config.open_swap_in, OpenSwapIn::Ahead);
    assert!(!config.list_xattr && !config.allow_other && !config.ro && !config.close_wait);
    assert_eq!(config.log, "info");
    assert_eq!(config.buffers(), 1024);
}

#[test]
fn every_option_works_in_every_source() {
    for option in &OPTIONS {
        let text = match option.kind {
            Kind::Size { .. } => "2m",
            Kind::Count { .. } => "3",
            Kind::Switch => "on",
            Kind::Choice(words) => words[0],
            Kind::Address => "9550",
            Kind::Path => "/run/swapfs.prom",
            Kind::LogFilter => "debug",
        };
        let (text, expected) = match option.name {
            "pool_size" => ("64m", option.kind.parse_text("64m")),
            _ => (text, option.kind.parse_text(text)),
        };
        let mut by_flag = Settings::new();
        by_flag.flag(option.name, text).unwrap();
        let by_list = from_list(&format!("{}={text}", option.name)).unwrap();
        let json = match option.kind {
            Kind::Count { .. } => text.to_owned(),
            _ => format!("{text:?}"),
        };
        let by_file =
            from_file(&format!(r#"{{"swapfs": {{"{}": {json}}}}}"#, option.name)).unwrap();
        for (config, origin) in
            [(by_flag.build().unwrap(), "flag"), (by_list, "-o"), (by_file, "file")]
        {
            let row = config.rows().into_iter().find(|row| row.key == option.name).unwrap();
            assert_eq!(Some(row.value), expected.as_ref().map(Value::to_string), "{}", option.name);
            assert!(row.origin.starts_with(origin), "{}: {}", option.name, row.origin);
        }
    }
}

#[test]
fn metrics_are_shown_to_others_only_when_that_is_said() {
    let listen = |list: &str| from_list(list).map(|config| config.metrics_listen);
    let local = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 9550)));
    assert_eq!(listen("pool_size=64m").unwrap(), None);
    assert_eq!(listen("metrics_listen=off").unwrap(), None);
    assert_eq!(listen("metrics_listen=9550").unwrap(), local);
    assert_eq!(listen("metrics_listen=127.0.0.1:9550").unwrap(), local);
    assert!(listen("metrics_listen=[::1]:9550").unwrap().is_some());
    assert!(listen("metrics_listen=0.0.0.0:9550,metrics_public").unwrap().is_some());
    let error = message(from_list("metrics_listen=0.0.0.0:9550"));
    assert!(error.contains("metrics_public"), "{error}");
    for bad in ["localhost:9550", "70000", "127.0.0.1", ""] {
        let error = message(from_list(&format!("metrics_listen={bad}")));
        assert!(error.contains("ADDRESS:PORT"), "{bad}: {error}");
    }
    let file = |list: &str| from_list(list).map(|config| config.metrics_file);
    assert_eq!(file("metrics_file=/run/x.prom").unwrap(), Some("/run/x.prom".into()));
    assert!(message(from_list("metrics_file=x.prom")).contains("an absolute path"));
}

#[test]
fn flag_beats_list_beats_file_beats_built_in() {
    let file = file(r#"{"swapfs": {"queue_depth": 2, "thread_count": 2, "fuse_threads": 2}}"#);
    let mut settings = Settings::new();
    settings.read_file(file.path()).unwrap();
    settings.mount_options("queue_depth=3,thread_count=3", false).unwrap();
    settings.flag("queue_depth", "4").unwrap();
    let config = settings.build().unwrap();
    assert_eq!((config.queue_depth, config.thread_count, config.fuse_threads), (4, 3, 2));
    let json = config.to_json();
    assert_eq!(json["queue_depth"], json!({"value": 4, "origin": "flag"}));
    assert_eq!(json["thread_count"]["origin"], "-o");
    assert!(json["fuse_threads"]["origin"].as_str().unwrap().starts_with("file /"));
    assert_eq!(json["pool_size"], json!({"value": GIB, "origin": "built-in"}));
    assert_eq!(json["read_ahead"]["value"], 4 * MIB);
}

#[test]
fn the_last_of_a_list_counts() {
    assert_eq!(from_list("queue_depth=3,queue_depth=5").unwrap().queue_depth, 5);
    assert!(!from_list("ro,rw").unwrap().ro);
    assert!(from_list("rw,ro").unwrap().ro);
}

#[test]
fn a_deepspeed_aio_block_is_read() {
    let config = from_file(
        r#"{"train_batch_size": 8, "aio": {"block_size": 262144, "queue_depth": 32,
            "intra_op_parallelism": 2, "single_submit": true, "overlap_events": false,
            "use_gds": false}, "zero_optimization": {"stage": 3}}"#,
    )
    .unwrap();
    assert_eq!((config.block_size, config.queue_depth, config.thread_count), (256 * KIB, 32, 2));
    assert!(config.single_submit && !config.overlap_events);
    let config = from_file(r#"{"aio": {"thread_count": 3}, "swapfs": null}"#).unwrap();
    assert_eq!(config.thread_count, 3);
    let both = from_file(r#"{"aio": {"intra_op_parallelism": 2, "thread_count": 3}}"#).unwrap();
    assert_eq!(both.thread_count, 2, "what DeepSpeed itself reads");
    let own = from_file(r#"{"swapfs": {"queue_depth": 9}, "aio": {"queue_depth": 2}}"#).unwrap();
    assert_eq!(own.queue_depth, 9);
}

#[test]
fn a_null_is_as_if_absent() {
    let config = from_file(r#"{"aio": {"queue_depth": null}, "swapfs": {"read_ahead": null}}"#);
    assert_eq!(config.unwrap().queue_depth, 8);
}

#[test]
fn wrong_types_and_values_name_key_value_and_what_is_accepted() {
    for (text, expected) in [
        (
            r#"{"aio": {"queue_depth": "many"}}"#,
            r#"aio.queue_depth: "many" is not accepted; give a whole number from 1 to 4096"#,
        ),
        (
            r#"{"aio": {"single_submit": "yes"}}"#,
            r#"aio.single_submit: "yes" is not accepted; give on, off, true or false"#,
        ),
        (
            r#"{"swapfs": {"block_size": 100000}}"#,
            "swapfs.block_size: 100000 is not accepted; give a power of two from 64 KiB to 16 MiB \
             (as in 4096, 64k, 1.5 GiB, 2 GB)",
        ),
        (
            r#"{"swapfs": {"open_swap_in": "some"}}"#,
            r#"swapfs.open_swap_in: "some" is not accepted; give one of none, ahead, all"#,
        ),
        (r#"{"aio": []}"#, "aio: [] is not accepted; give a JSON object"),
        (
            r#"{"swapfs": {"queue_depth": 1.5}}"#,
            "swapfs.queue_depth: 1.5 is not accepted; give a whole number from 1 to 4096",
        ),
    ] {
        assert_eq!(message(from_file(text)), expected);
    }
    assert_eq!(
        message(from_list("queue_depth=0")),
        r#"-o queue_depth: "0" is not accepted; give a whole number from 1 to 4096"#
    );
    assert_eq!(
        message(from_list("pool_size")),
        "-o pool_size: nothing is not accepted; give a size from 1 KiB to 64 TiB \
         (as in 4096, 64k, 1.5 GiB, 2 GB)"
    );
    assert_eq!(
        message(from_list("nosuid=1")),
        r#"-o nosuid: "1" is not accepted; give the name alone"#
    );
    let error = Settings::new().flag("log", "loud").unwrap_err().to_string();
    assert!(error.starts_with(r#"--log: "loud" is not accepted; give off, error"#), "{error}");
}

#[test]
fn unknown_names_are_errors_with_the_nearest() {
    assert_eq!(
        message(from_list("poolsize=1g")),
        "-o poolsize: no such mount option; the nearest is pool_size"
    );
    assert_eq!(
        message(from_file(r#"{"swapfs": {"listxattr": "on"}}"#)),
        "swapfs.listxattr: no such key; the nearest is list_xattr"
    );
    let mut settings = Settings::new();
    settings.mount_options("poolsize=1g,queue_depth=2", true).unwrap();
    assert_eq!(settings.build().unwrap().queue_depth, 2, "sloppy skips what it does not know");
}

#[test]
fn files_that_are_no_configuration_are_named() {
    assert!(message(from_file("{")).starts_with("neither valid JSON nor Hjson: the end of"));
    assert_eq!(message(from_file("[]")), "the file is not a JSON object");
    let error = Settings::new().read_file("/nonexistent/x.json".as_ref()).unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/x.json: No such file or directory");
}

#[test]
fn a_pool_of_too_few_buffers_is_refused_in_one_line() {
    assert_eq!(
        message(from_list("pool_size=7m")),
        "pool_size: 7 MiB holds 7 buffers of 1 MiB (block_size), at least 8 are needed; \
         give at least 8 MiB"
    );
    assert_eq!(from_list("pool_size=8m").unwrap().buffers(), 8);
    // Smaller blocks do not make the largest request smaller.
    assert_eq!(
        message(from_list("pool_size=1m,block_size=64k")),
        "pool_size: 1 MiB holds 16 buffers of 64 KiB (block_size), at least 32 are needed; \
         give at least 2 MiB"
    );
    assert_eq!(from_list("pool_size=2m,block_size=64k").unwrap().buffers(), 32);
}

#[test]
fn a_pool_is_whole_buffers() {
    for (list, shown, buffers) in [
        ("pool_size=10.2MiB", "10 MiB", 10),
        ("pool_size=10MB", "9 MiB", 9),
        // 312.5 blocks.
        ("pool_size=20000k,block_size=64k", "19968 KiB", 312),
        ("pool_size=100.5MiB,block_size=4m", "100 MiB", 25),
    ] {
        let config = from_list(list).unwrap();
        let shown_there = &config.rows()[0];
        let found = (shown_there.value.as_str(), shown_there.origin.as_str(), config.buffers());
        assert_eq!(found, (shown, "-o", buffers), "{list}");
        assert!(config.pool_size.is_multiple_of(config.block_size));
    }
    assert!(from_list("pool_size=8388607").is_err(), "seven buffers");
}

#[test]
fn read_ahead_follows_depth_and_pool_unless_chosen() {
    assert_eq!(from_list("queue_depth=16").unwrap().read_ahead, 16 * MIB);
    assert_eq!(from_list("pool_size=16m").unwrap().read_ahead, 2 * MIB);
    assert_eq!(from_list("pool_size=16m,read_ahead=4m").unwrap().read_ahead, 4 * MIB);
    assert_eq!(from_list("read_ahead=0").unwrap().read_ahead, 0);
    assert_eq!(
        message(from_list("pool_size=16m,read_ahead=17m")),
        "-o read_ahead: 17 MiB is not accepted; give at most the pool_size (16 MiB)"
    );
}

#[test]
fn standard_mount_options_become_flags() {
    let flags = |list: &str| from_list(list).unwrap().mount.flags;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    assert_eq!(flags(""), safe);
    assert_eq!(flags("suid,dev"), MsFlags::empty());
    assert_eq!(flags("noexec,noatime"), safe | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME);
    assert_eq!(flags("noexec,exec,noatime,atime"), safe);
    assert_eq!(flags("suid,dev,user"), safe | MsFlags::MS_NOEXEC);
    assert_eq!(flags("user,exec"), safe);
    let list = "_netdev,nofail,auto,noauto,defaults,x-systemd.automount,user=me,users,rw";
    assert!(from_list(list).is_ok());
    let named = from_list(r#"fsname="a,b",queue_depth=2"#).unwrap();
    assert_eq!((named.mount.fsname.as_deref(), named.queue_depth), (Some("a,b"), 2));
    assert_eq!(from_list(r"fsname=a\,b").unwrap().mount.fsname.as_deref(), Some("a,b"));
}

#[test]
fn log_filters_may_name_modules() {
    assert_eq!(from_list(r#"log="warn,swapfs::aio=debug""#).unwrap().log, "warn,swapfs::aio=debug");
    assert!(from_list("log=debgu").is_err());
}

#[test]
fn the_template_is_a_configuration_file_with_the_same_values() {
    let template = Config::default().to_template();
    assert_eq!(template["aio"]["block_size"], MIB);
    assert_eq!(template["swapfs"]["pool_size"], "1 GiB");
    let again = from_file(&template.to_string()).unwrap();
    let values = |config: &Config| -> Vec<String> {
        config.rows().into_iter().map(|row| row.value).collect()
    };
    assert_eq!(values(&again), values(&Config::default()));
}

/// The lines about a file, without its name.
fn warnings(config: &Config) -> Vec<String> {
    let lines = config.warnings().iter();
    lines.map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
}

#[test]
fn what_deepspeed_would_ignore_in_aio_is_a_warning() {
    let config = from_file(
        r#"{"aio": {"intra_op_paralelism": 2, "io_backend": "io_uring", "max_aio_handles": null, "queue_depth": 4}}"#,
    );
    let config = config.unwrap();
    assert_eq!((config.queue_depth, config.thread_count), (4, 1));
    let lines = warnings(&config);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(
        lines[0],
        "aio.intra_op_paralelism: no such key; the nearest is intra_op_parallelism; ignored"
    );
    for (line, key) in lines[1..].iter().zip(["io_backend", "max_aio_handles"]) {
        assert!(line.starts_with(&format!("aio.{key}: no such key")), "{line}");
        assert!(line.ends_with("; ignored"), "{line}");
    }
    assert!(from_file(r#"{"swapfs": {"io_backend": "io_uring"}}"#).is_err());
}

#[test]
fn what_deepspeed_takes_and_a_mount_cannot_use_is_said() {
    for (text, value, line) in [
        (
            r#"{"aio": {"block_size": 1000000}}"#,
            ("block_size", "512 KiB"),
            "aio.block_size: 1000000 is not accepted; give a power of two from 64 KiB to 16 MiB \
             (as in 4096, 64k, 1.5 GiB, 2 GB); 512 KiB is used",
        ),
        (
            r#"{"aio": {"block_size": 134217728}}"#,
            ("block_size", "16 MiB"),
            "aio.block_size: 134217728 is not accepted; give a power of two from 64 KiB to 16 MiB \
             (as in 4096, 64k, 1.5 GiB, 2 GB); 16 MiB is used",
        ),
        (
            r#"{"aio": {"block_size": 4096}}"#,
            ("block_size", "64 KiB"),
            "aio.block_size: 4096 is not accepted; give a power of two from 64 KiB to 16 MiB \
             (as in 4096, 64k, 1.5 GiB, 2 GB); 64 KiB is used",
        ),
        (
            r#"{"aio": {"queue_depth": 1e5}}"#,
            ("queue_depth", "4096"),
            "aio.queue_depth: 100000.0 is not accepted; give a whole number from 1 to 4096; 4096 is used",
        ),
        (
            r#"{"aio": {"intra_op_parallelism": 256}}"#,
            ("thread_count", "64"),
            "aio.intra_op_parallelism: 256 is not accepted; give a whole number from 1 to 64; 64 is used",
        ),
    ] {
        let config = from_file(text).unwrap();
        let row = config.rows().into_iter().find(|row| row.key == value.0).unwrap();
        assert_eq!(row.value, value.1, "{text}");
        assert_eq!(warnings(&config), [line]);
    }
    for refused in ["0", "-1", "1.5", "[]", "true"] {
        assert!(from_file(&format!(r#"{{"aio": {{"queue_depth": {refused}}}}}"#)).is_err());
    }
    assert!(from_file(r#"{"swapfs": {"queue_depth": 8192}}"#).is_err(), "swapfs's own");
    assert!(from_file(r#"{"aio": {"single_submit": 1}}"#).unwrap().single_submit);
}

/// A file as public examples have it, which DeepSpeed's reader takes.
#[test]
fn an_annotated_deepspeed_file_is_taken() {
    let config = from_file(
        "\u{feff}{\n  // ZeRO-3\n  train_batch_size: 8,\n  'aio': {\n    queue_depth: 16 # deep\n    \
         intra_op_parallelism: 2, /* threads */\n  },\n  \"zero_optimization\": {\n    \"stage\": 3,\n    \
         offload_param: {\n      device: nvme\n      nvme_path: /local_nvme\n      buffer_size: 1e6,\n    },\n  },\n}\n",
    );
    let config = config.unwrap();
    assert_eq!((config.queue_depth, config.thread_count), (16, 2));
    assert_eq!(config.nvme_path().unwrap(), Some("/local_nvme".into()));
    assert_eq!(config.pool_size, 20 * MIB);
    assert!(config.warnings().is_empty());
    for nothing in ["", " \n", "# nothing\n", "{}"] {
        assert_eq!(from_file(nothing).unwrap().pool_size, GIB, "{nothing:?}");
    }
}

/// Variables as the environment has them.
fn variables(list: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
    let owned: Vec<_> = list.iter().map(|(name, value)| (name.into(), value.into())).collect();
    owned.into_iter()
}

#[test]
fn the_machines_defaults_and_variables_come_before_the_file() {
    let defaults = file(
        "{swapfs: {queue_depth: 2, thread_count: 2, fuse_threads: 2, pool_size: '64m'}, aio: {single_submit: 1}\n\
         zero_optimization: {offload_param: {device: 'nvme', nvme_path: '/of/no/run'}}}",
    );
    let chosen = file(r#"{"swapfs": {"queue_depth": 4}}"#);
    let mut settings = Settings::new();
    settings.read_defaults(defaults.path()).unwrap();
    let set = [
        ("SWAPFS_QUEUE_DEPTH", "3"),
        ("SWAPFS_THREAD_COUNT", "3"),
        ("SWAPFS_RO", ""),
        ("SWAPFS_SEED", "7"),
        ("PATH", "/bin"),
    ];
    settings.read_variables(variables(&set)).unwrap();
    let mut with_file = settings.clone();
    let config = settings.build().unwrap();
    assert_eq!((config.queue_depth, config.thread_count, config.fuse_threads), (3, 3, 2));
    assert!(config.single_submit && !config.ro);
    assert_eq!(config.pool_size, 64 * MIB);
    assert_eq!(config.nvme_path().unwrap(), None);
    let rows = config.rows();
    let origin = |key: &str| rows.iter().find(|row| row.key == key).unwrap().origin.clone();
    assert_eq!(origin("queue_depth"), "variable SWAPFS_QUEUE_DEPTH");
    assert_eq!(origin("fuse_threads"), format!("file {}", defaults.path().display()));
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    with_file.read_file(chosen.path()).unwrap();
    with_file.mount_options("thread_count=5", false).unwrap();
    let config = with_file.build().unwrap();
    assert_eq!((config.queue_depth, config.thread_count, config.fuse_threads), (4, 5, 2));
}

/// What a DeepSpeed run needs counts before a default of the machine.
#[test]
fn deepspeeds_buffers_count_before_the_machines_pool() {
    let defaults = file("swapfs: {pool_size: '64m'}");
    let run = file(
        "zero_optimization: {offload_param: {device: 'nvme', nvme_path: '/x', buffer_size: 1e6}}",
    );
    let mut settings = Settings::new();
    settings.read_defaults(defaults.path()).unwrap();
    settings.read_file(run.path()).unwrap();
    assert_eq!(settings.build().unwrap().pool_size, 20 * MIB);
}

#[test]
fn defaults_that_others_may_write_and_wrong_variables_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let defaults = file("swapfs: {queue_depth: 2}");
    for (mode, count) in [(0o644, 0), (0o600, 0), (0o664, 1), (0o646, 1)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(defaults.path(), permissions).unwrap();
        let mut settings = Settings::new();
        settings.read_defaults(defaults.path()).unwrap();
        let config = settings.build().unwrap();
        assert_eq!(config.warnings().len(), count, "{mode:o}: {:?}", config.warnings());
        assert_eq!(config.queue_depth, if count == 0 { 2 } else { 8 });
    }
    Settings::new().read_defaults("/nonexistent/config.json".as_ref()).unwrap();
    let broken = file("{swapfs: ");
    assert!(Settings::new().read_defaults(broken.path()).is_err());
    let read = |list: &[(&str, &str)]| {
        let mut settings = Settings::new();
        settings.read_variables(variables(list)).map(|()| settings.build().unwrap())
    };
    let error = read(&[("SWAPFS_POOL_SIZE", "many")]).unwrap_err();
    assert!(
        error.to_string().starts_with(r#"SWAPFS_POOL_SIZE: "many" is not accepted; give"#),
        "{error}"
    );
    assert!(!error.is_usage());
    let config = read(&[("SWAPFS_POOLSIZE", "1g"), ("SWAPFS_TEST_DIR", "x")]).unwrap();
    assert_eq!(
        config.warnings(),
        ["SWAPFS_POOLSIZE: no such variable; the nearest is SWAPFS_POOL_SIZE; ignored"]
    );
}

/// Every option is in the schema, with its default, which the schema's own types take.
#[test]
fn the_schema_describes_what_is_read() {
    let schema = schema();
    let own = &schema["properties"]["swapfs"];
    assert_eq!(own["additionalProperties"], false);
    assert_eq!(own["properties"].as_object().unwrap().len(), OPTIONS.len());
    for option in &OPTIONS {
        let described = &own["properties"][option.name];
        assert!(described["description"].as_str().unwrap().starts_with(option.help));
        let accepted = described["anyOf"].as_array().unwrap();
        let fits = |value: &serde_json::Value| {
            accepted.iter().any(|one| match (one.get("type"), one.get("enum")) {
                (_, Some(words)) => words.as_array().unwrap().contains(value),
                (Some(kind), _) if kind == "integer" => value.as_u64().is_some_and(|number| {
                    number >= one["minimum"].as_u64().unwrap()
                        && number <= one["maximum"].as_u64().unwrap()
                }),
                (Some(kind), _) if kind == "boolean" => value.is_boolean(),
                (Some(kind), _) => kind == "string" && value.is_string(),
                _ => false,
            })
        };
        if let Some(default) = option.built_in() {
            assert!(fits(&default.to_json()), "{}: {default}", option.name);
        }
        assert!(!fits(&json!([])), "{}", option.name);
        for key in option.aio_keys {
            assert_eq!(&schema["properties"]["aio"]["properties"][key], described);
        }
    }
}

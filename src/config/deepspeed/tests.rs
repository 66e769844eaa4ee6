use super::*;
use crate::config::Config;
use crate::units::{GIB, KIB, MIB};

/// ZeRO-3 with everything on nvme, as the tutorials show it.
const INFINITY: &str = r#"{
    "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 3e-5, "betas": [0.9, 0.999], "eps": 1e-8}},
    "fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 16},
    "zero_optimization": {
        "stage": 3, "sub_group_size": 1e9, "stage3_max_live_parameters": 1e9,
        "cpu_offload": true, "cpu_offload_params": true, "cpu_offload_use_pin_memory": true,
        "offload_param": {"device": "nvme", "nvme_path": "/local_nvme", "pin_memory": true,
            "buffer_count": 5, "buffer_size": 1e6, "max_in_cpu": 1e9},
        "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme/", "pin_memory": false,
            "buffer_count": 4, "pipeline_read": true, "fast_init": false}
    },
    "aio": {"block_size": 1048576, "queue_depth": 32, "intra_op_parallelism": 8,
        "single_submit": false, "overlap_events": true}
}"#;

/// As Transformers fill it in later.
const AUTOS: &str = r#"{
    "train_batch_size": "auto", "gradient_clipping": "auto",
    "fp16": {"enabled": "auto", "loss_scale": 0}, "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e9,
        "offload_param": {"device": "nvme", "nvme_path": "/mnt/nvme0", "pin_memory": "auto",
            "buffer_count": "auto", "buffer_size": 3000000},
        "offload_optimizer": {"device": "cpu", "pin_memory": true}
    },
    "aio": {"block_size": "auto", "queue_depth": "auto", "thread_count": "auto",
        "single_submit": "auto", "overlap_events": "auto", "use_gds": "auto"},
    "swapfs": {"fuse_threads": "auto"}
}"#;

/// The output of DeepSpeed's tuner.
const TUNED: &str = r#"{
   "aio": {
      "single_submit": "true",
      "overlap_events": "false",
      "num_threads": 4,
      "queue_depth": 32,
      "block_size": 8388608
   }
}"#;

fn settings(text: &str) -> Result<(Settings, String), ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ds.json");
    std::fs::write(&file, text).unwrap();
    let mut settings = Settings::new();
    settings.read_file(&file)?;
    Ok((settings, file.display().to_string()))
}

fn config(text: &str) -> Config {
    let (settings, _) = settings(text).unwrap();
    settings.build().unwrap()
}

/// The error of reading or building, without the file's name in front.
fn error(text: &str) -> String {
    let built = settings(text).and_then(|(settings, _)| settings.build());
    let line = built.expect_err(text).to_string();
    let (_, reason) = line.split_once("/ds.json: ").expect(&line);
    reason.to_owned()
}

/// The error of asking where to mount, with `FILE` for the file's path.
fn path_error(text: &str) -> String {
    let (settings, file) = settings(text).unwrap();
    let line = settings.build().unwrap().nvme_path().unwrap_err();
    line.to_string().replace(&file, "FILE")
}

fn origin(config: &Config, key: &str) -> String {
    let rows = config.rows();
    let row = rows.into_iter().find(|row| row.key == key).unwrap();
    let (file, from) = row.origin.split_once(" (").unwrap_or((&row.origin, ""));
    let kind = file.split(' ').next().unwrap();
    format!("{kind} ({from}")
}

/// A file whose one section has these keys, and the device nvme.
fn offload(keys: &str) -> String {
    format!(r#"{{"zero_optimization": {{"offload_param": {{"device": "nvme"{keys}}}}}}}"#)
}

#[test]
fn zero_3_with_params_and_optimizer_on_nvme_is_taken_as_it_is() {
    let config = config(INFINITY);
    assert_eq!((config.block_size, config.queue_depth, config.thread_count), (MIB, 32, 8));
    // 10,000,000 bytes are 9.5 blocks.
    assert_eq!(config.pool_size, 10 * MIB);
    assert_eq!(
        config.pool_note().unwrap(),
        "pool_size 10 MiB from offload_param: 5 buffers of 1000000 elements of 2 bytes"
    );
    assert_eq!(
        origin(&config, "pool_size"),
        "file (offload_param: 5 buffers of 1000000 elements of 2 bytes)"
    );
    assert!(config.pin_memory, "one section asks for it");
    assert_eq!(origin(&config, "pin_memory"), "file (offload_param.pin_memory)");
    assert_eq!(config.nvme_path().unwrap(), Some(PathBuf::from("/local_nvme")));
    assert!(config.warnings().is_empty());
}

#[test]
fn auto_is_as_if_not_given() {
    let config = config(AUTOS);
    let built_in = Config::default();
    assert_eq!(
        (config.block_size, config.queue_depth, config.thread_count),
        (built_in.block_size, built_in.queue_depth, built_in.thread_count)
    );
    assert_eq!(origin(&config, "queue_depth"), "built-in (");
    assert_eq!(origin(&config, "pin_memory"), "built-in (");
    assert_eq!(origin(&config, "fuse_threads"), "built-in (");
    // DeepSpeed's own buffer_count, and nobody knows that the run is in fp16.
    assert_eq!(
        origin(&config, "pool_size"),
        "file (offload_param: 5 buffers of 3000000 elements of 4 bytes)"
    );
    assert_eq!(config.pool_size, 58 * MIB);
    assert_eq!(config.nvme_path().unwrap(), Some(PathBuf::from("/mnt/nvme0")));
}

#[test]
fn the_tuners_words_and_thread_key_are_read() {
    let config = config(TUNED);
    assert!(config.single_submit && !config.overlap_events);
    assert_eq!((config.block_size, config.queue_depth, config.thread_count), (8 * MIB, 32, 4));
    assert_eq!(origin(&config, "thread_count"), "file (");
    assert_eq!(config.pool_note(), None);
    let loose = self::config(
        r#"{"aio": {"block_size": "256K", "queue_depth": "16", "num_threads": 2e0,
            "single_submit": "True", "use_gds": "false"}}"#,
    );
    assert_eq!((loose.block_size, loose.queue_depth, loose.thread_count), (256 * KIB, 16, 2));
    assert!(loose.single_submit);
}

#[test]
fn use_gds_is_ignored_aloud() {
    let (settings, file) = settings(r#"{"aio": {"use_gds": true, "queue_depth": 4}}"#).unwrap();
    let config = settings.build().unwrap();
    assert_eq!(config.queue_depth, 4);
    assert_eq!(
        config.warnings(),
        [format!(
            "{file}: aio.use_gds: true is ignored, a filesystem cannot transfer from and to the GPU"
        )]
    );
}

#[test]
fn the_pool_is_cut_to_half_of_the_free_memory_and_never_below_the_least() {
    let read = |keys: &str| {
        let (settings, _) = settings(&offload(keys)).unwrap();
        settings.offload.unwrap()
    };
    let sized = |keys: &str, block_size: u64, free: u64| {
        let (bytes, origin) = read(keys).pool(block_size, Some(free)).unwrap();
        let Origin::Offload { from, .. } = origin else {
            panic!("{origin}");
        };
        let cut = from.split_once("bytes").unwrap().1.to_owned();
        (bytes, cut)
    };
    let cut = ", cut to half of the free memory".to_owned();
    let raised = ", raised to the smallest pool".to_owned();
    let defaults = 2_000_000_000_u64.next_multiple_of(MIB);
    assert_eq!(sized("", MIB, 64 * GIB), (defaults, String::new()));
    assert_eq!(sized("", MIB, 2 * GIB), (GIB, cut.clone()));
    assert_eq!(sized("", MIB, 2 * GIB + MIB), (GIB, cut.clone()));
    assert_eq!(sized("", 16 * MIB, 3 * MIB), (128 * MIB, raised.clone()));
    assert_eq!(sized(r#", "buffer_count": 0"#, MIB, GIB), (8 * MIB, raised.clone()));
    let huge = r#", "buffer_count": 281474976710656, "buffer_size": 281474976710656"#;
    assert_eq!(sized(huge, MIB, GIB), (512 * MIB, cut));
    assert_eq!(read(huge).pool(MIB, None).unwrap().0, SIZE_MAX);
    assert!(crate::memory::available().unwrap() > 64 * MIB);
    let config = config(&offload(huge));
    assert!(config.pool_size < 64 << 40 && config.pool_size.is_multiple_of(MIB));
    assert!(config.pool_note().unwrap().ends_with(", cut to half of the free memory"));
}

#[test]
fn the_optimizers_buffers_count_when_their_size_is_given() {
    let sized = config(
        r#"{"bf16": {"enabled": "True"}, "zero_optimization": {
            "offload_param": {"device": "nvme", "buffer_count": 4, "buffer_size": 1048576},
            "offload_optimizer": {"device": "nvme", "buffer_size": 2097152}}}"#,
    );
    assert_eq!(sized.pool_size, 24 * MIB);
    assert_eq!(
        sized.pool_note().unwrap(),
        "pool_size 24 MiB from offload_param: 4 buffers of 1048576 elements of 2 bytes and \
         offload_optimizer: 4 buffers of 2097152 elements of 2 bytes"
    );
    let unsized_ = config(r#"{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}"#);
    assert_eq!(unsized_.pool_size, GIB);
    assert_eq!(origin(&unsized_, "pool_size"), "built-in (");
}

#[test]
fn a_size_that_somebody_chose_beats_the_reckoned_one() {
    let with = |more: &str| INFINITY.replacen('{', &format!("{{{more}"), 1);
    let own = config(&with(r#""swapfs": {"pool_size": "64m", "pin_memory": "off"},"#));
    assert_eq!((own.pool_size, own.pin_memory), (64 * MIB, false));
    assert_eq!(own.pool_note(), None);
    let (mut settings, _) = settings(INFINITY).unwrap();
    settings.mount_options("block_size=4m,pin_memory=off", false).unwrap();
    let by_block = settings.clone().build().unwrap();
    assert_eq!(by_block.pool_size, 32 * MIB, "the smallest of such blocks");
    assert_eq!(origin(&by_block, "pin_memory"), "-o (");
    settings.flag("pool_size", "1g").unwrap();
    let by_flag = settings.build().unwrap();
    assert_eq!(by_flag.pool_size, GIB);
    assert_eq!(origin(&by_flag, "pool_size"), "flag (");
}

#[test]
fn where_to_mount_is_one_clear_line_when_it_is_not_clear() {
    let two = INFINITY.replace("/local_nvme/", "/other_nvme");
    assert_eq!(
        path_error(&two),
        "FILE: zero_optimization.offload_param.nvme_path is /local_nvme and \
         zero_optimization.offload_optimizer.nvme_path is /other_nvme: two mounts, \
         `swapfs mount --config FILE /local_nvme /local_nvme` and \
         `swapfs mount --config FILE /other_nvme /other_nvme`"
    );
    for keys in ["", r#", "nvme_path": null"#, r#", "nvme_path": "auto""#] {
        assert_eq!(
            path_error(&offload(keys)),
            "FILE: zero_optimization.offload_param.nvme_path is missing; name a directory there, \
             or give SWAP_FOLDER and MOUNTPOINT"
        );
    }
    for text in [
        "{}",
        TUNED,
        r#"{"zero_optimization": true}"#,
        r#"{"zero_optimization": {"offload_param": {"device": "cpu"}, "offload_optimizer": {}}}"#,
    ] {
        assert_eq!(
            path_error(text),
            "FILE: neither zero_optimization.offload_param nor .offload_optimizer has the device \
             nvme; give SWAP_FOLDER and MOUNTPOINT"
        );
    }
    assert_eq!(Config::default().nvme_path().unwrap(), None);
}

#[test]
fn two_names_of_one_directory_are_one_mount() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let text = format!(
        r#"{{"zero_optimization": {{"offload_param": {{"device": "nvme", "nvme_path": {:?}}},
            "offload_optimizer": {{"device": "nvme", "nvme_path": {:?}}}}}}}"#,
        folder.path(),
        link
    );
    assert_eq!(config(&text).nvme_path().unwrap().as_deref(), Some(folder.path()));
}

const OBJECT: &str = "is not accepted; give a JSON object";
const NUMBER: &str = "is not accepted; give a whole number from 0 to 281474976710656";
const SWITCH: &str = "is not accepted; give on, off, true or false";

#[test]
fn a_block_of_the_wrong_type_is_named() {
    for (text, expected) in [
        (r#"{"aio": 7}"#, "aio: 7"),
        (r#"{"aio": "fast"}"#, r#"aio: "fast""#),
        (r#"{"swapfs": [1]}"#, "swapfs: [1]"),
        (r#"{"zero_optimization": 3}"#, "zero_optimization: 3"),
        (
            r#"{"zero_optimization": {"offload_param": "nvme"}}"#,
            r#"zero_optimization.offload_param: "nvme""#,
        ),
        (
            r#"{"bf16": true, "zero_optimization": {"offload_param": {"device": "nvme"}}}"#,
            "bf16: true",
        ),
    ] {
        assert_eq!(error(text), format!("{expected} {OBJECT}"));
    }
}

#[test]
fn wrong_types_name_the_whole_key_the_value_and_what_is_accepted() {
    let path = "is not accepted; give the path of a directory";
    for (keys, value, accepted) in [
        (r#""buffer_count": -1"#, "-1", NUMBER),
        (r#""buffer_count": "five""#, r#""five""#, NUMBER),
        (r#""buffer_count": true"#, "true", NUMBER),
        (r#""buffer_size": 1.5"#, "1.5", NUMBER),
        (r#""buffer_size": 1e300"#, "1e+300", NUMBER),
        (r#""buffer_size": 99999999999999999999999"#, "1e+23", NUMBER),
        (r#""buffer_size": {}"#, "{}", NUMBER),
        (r#""pin_memory": 2"#, "2", SWITCH),
        (r#""nvme_path": ["/a", "/b"]"#, r#"["/a","/b"]"#, path),
        (r#""nvme_path": """#, r#""""#, path),
    ] {
        let key = keys.split('"').nth(1).unwrap();
        let expected = format!("zero_optimization.offload_param.{key}: {value} {accepted}");
        assert_eq!(error(&offload(&format!(", {keys}"))), expected);
    }
    let device = "is not accepted; give one of none, cpu, nvme";
    for (section, value) in [("offload_param", r#""nvm""#), ("offload_optimizer", "1")] {
        assert_eq!(
            error(&format!(r#"{{"zero_optimization": {{"{section}": {{"device": {value}}}}}}}"#)),
            format!("zero_optimization.{section}.device: {value} {device}")
        );
    }
    assert_eq!(
        error(&(r#"{"fp16": {"enabled": "maybe"}, "#.to_owned() + &offload("")[1..])),
        format!(r#"fp16.enabled: "maybe" {SWITCH}"#)
    );
}

#[test]
fn wrong_values_in_aio_are_named_too() {
    let threads = "is not accepted; give a whole number from 1 to 64";
    let block = "is not accepted; give a power of two from 64 KiB to 16 MiB (as in 4096, 64k, 1.5 GiB, 2 GB)";
    for (text, expected) in [
        (r#""overlap_events": 2"#, format!("aio.overlap_events: 2 {SWITCH}")),
        (r#""use_gds": "perhaps""#, format!(r#"aio.use_gds: "perhaps" {SWITCH}"#)),
        (r#""num_threads": 0"#, format!("aio.num_threads: 0 {threads}")),
        (r#""thread_count": [4]"#, format!("aio.thread_count: [4] {threads}")),
        (r#""block_size": -1000000"#, format!("aio.block_size: -1000000 {block}")),
        (r#""block_size": "1MB""#, format!(r#"aio.block_size: "1MB" {block}"#)),
        (r#""block_size": 1e300"#, format!("aio.block_size: 1e+300 {block}")),
    ] {
        assert_eq!(error(&format!(r#"{{"aio": {{{text}}}}}"#)), expected);
    }
    for (text, expected) in [
        (r#""num_thread": 4"#, "aio.num_thread: no such key; the nearest is num_threads; ignored"),
        (
            r#""QueueDepth\n": 4"#,
            r#"aio."QueueDepth\n": no such key; the nearest is queue_depth; ignored"#,
        ),
    ] {
        let config = config(&format!(r#"{{"aio": {{{text}}}}}"#));
        let warning = config.warnings()[0].split_once("/ds.json: ").unwrap().1;
        assert_eq!(warning, expected);
    }
    let long = format!(r#"{{"aio": {{"queue_depth": "{}"}}}}"#, "9".repeat(5000));
    assert_eq!(
        error(&long),
        format!(
            "aio.queue_depth: \"{}… is not accepted; give a whole number from 1 to 4096",
            "9".repeat(59)
        )
    );
}

#[test]
fn sections_that_do_not_concern_nvme_may_hold_anything() {
    config(
        r#"{"fp16": 3, "optimizer": [], "zero_optimization": {"stage": "three", "extra": {},
            "offload_param": {"device": "cpu", "buffer_count": [], "nvme_path": 5},
            "offload_optimizer": {"device": null, "pin_memory": "maybe"}}}"#,
    );
}

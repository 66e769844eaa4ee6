//! The long form of fuzzing, guided by coverage: libFuzzer's main function around one target, whose name is in
//! `SWAPFS_FUZZ_TARGET`. Built and run by `tests/suites/fuzz.sh`.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn target() -> targets::Target {
    static TARGET: OnceLock<targets::Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("SWAPFS_FUZZ_TARGET").unwrap_or_default();
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("SWAPFS_FUZZ_TARGET={name}: no such target")).1
    })
}

fuzz_target!(|input: &[u8]| target()(input));

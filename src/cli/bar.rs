//! The bar of what moves bytes and may take long.

use std::fmt::Write;
use std::io::{self, IsTerminal};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A bar on a terminal, and nothing elsewhere: `word`, the bytes done and all of them, bytes per second and
/// the time left, on a line as wide as the terminal. The caller sets the length.
pub(super) fn byte_bar(word: &'static str) -> ProgressBar {
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, \
                    {left} left";
    bar(template).with_message(word)
}

/// The same in a form of indicatif's, where `{left}` is the time left.
pub(super) fn bar(template: &str) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", write_left);
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}

/// The time left; unknown while nothing moves, as on a device that does not answer.
fn write_left(state: &ProgressState, text: &mut dyn Write) {
    let is_done = state.len().is_some_and(|length| state.pos() >= length);
    // A text in memory takes everything.
    let _ = match is_done || state.per_sec() > 0.0 {
        true => write!(text, "{:#}", HumanDuration(state.eta())),
        false => write!(text, "?"),
    };
}

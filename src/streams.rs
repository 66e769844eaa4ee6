//! Standard output and standard error of a command. A reader that has gone away, as `head` does, ends nothing and changes
//! no exit status.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes `swapfs: ` and a line, formatted as by `format!`, to standard error.
macro_rules! tell {
    ($($words:tt)*) => {
        $crate::streams::write_line(format_args!($($words)*))
    };
}

pub(crate) use tell;

/// Writes a line to standard error with one call. There is no place to report that this failed: the error is dropped.
pub(crate) fn write_line(line: Arguments<'_>) {
    let _ = io::stderr().lock().write_all(format!("swapfs: {line}\n").as_bytes());
}

/// Writes a report and a line's end to standard output. Returns false when its reader has gone away.
///
/// # Errors
///
/// Those of writing, but for the reader's end.
pub(crate) fn write_report(text: &str) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

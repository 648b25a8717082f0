//! Where text goes: results to stdout, where a closed pipe is the reader's choice and no error; messages to stderr, above
//! the progress bars.

use std::io::{self, ErrorKind, IsTerminal, Stdout, Write};

/// Stdout. Ends the process with code 0 when the reader has gone (`repro sql … | head`).
pub struct Out(io::BufWriter<Stdout>);

impl Out {
    pub fn new() -> Self {
        Self(io::BufWriter::new(io::stdout()))
    }
}

fn or_gone<T>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_gone(self.0.write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        or_gone(self.0.flush())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // `flush` ends the process on a closed pipe; another error was or will be met by a write.
        self.flush().ok();
    }
}

/// A line to stderr.
pub fn message(text: &str) {
    super::progress::above_bars(|| {
        // Nothing can be said where stderr is closed.
        writeln!(io::stderr(), "{text}").ok();
    });
}

/// Whether results are for a human at a terminal.
pub fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns of the terminal; 100 where that is not known.
pub fn width() -> usize {
    let size = console::Term::stdout().size_checked();
    size.map_or(100, |(_, columns)| usize::from(columns).max(40))
}

/// `1,234,567`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 03 min`
pub fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    match s {
        _ if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        _ if s < 60.0 => format!("{s:.1} s"),
        _ if s < 3600.0 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `3.4 /s`, `1,234 /s`
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() || r <= 0.0 => "-".into(),
        r if r < 100.0 => format!("{r:.1}"),
        r => count(r.round() as u64),
    }
}

/// `12 B`, `3.4 MB`
pub fn bytes(n: u64) -> String {
    const UNITS: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [seconds(0.25), seconds(12.34), seconds(245.0), seconds(7380.0)],
            ["250 ms", "12.3 s", "4 min 05 s", "2 h 03 min"]
        );
        assert_eq!([rate(0.0), rate(3.44), rate(1234.4)], ["-", "3.4", "1,234"]);
        assert_eq!([bytes(12), bytes(3_400_000)], ["12 B", "3.4 MB"]);
    }
}

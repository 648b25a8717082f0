//! Rows of tables: neighbouring lines with the same number of columns.

use super::{Form, Mark, open};

pub(super) fn mark_tables(lines: &[&str], marks: &mut [Mark]) {
    let count = |line: &str, kind: Columns| kind.count(line);
    for (kind, least_rows, least_gaps) in [
        (Columns::Framed, 2, 2),
        (Columns::Pipes, 3, 1),
        (Columns::Tabs, 2, 1),
        (Columns::Spaces, 3, 1),
        (Columns::Commas, 3, 2),
    ] {
        let mut at = 0;
        while at < lines.len() {
            let gaps = if open(lines[at], marks[at]) { count(lines[at], kind) } else { 0 };
            let mut end = at + 1;
            if gaps >= least_gaps {
                while end < lines.len() && open(lines[end], marks[end]) && count(lines[end], kind) == gaps {
                    end += 1;
                }
            }
            if gaps >= least_gaps && end - at >= least_rows {
                for row in at..end {
                    let rule = lines[row].chars().all(|c| matches!(c, '|' | '-' | ':' | '+' | '=' | ' ' | '\t'));
                    marks[row] = Some((!rule).then_some(Form::Table));
                }
            }
            at = end;
        }
    }
}

/// How a table separates its columns.
#[derive(Clone, Copy)]
enum Columns {
    /// `| a | b |`
    Framed,
    /// `a | b`
    Pipes,
    Tabs,
    /// two or more spaces
    Spaces,
    /// `a,b,c` without spaces
    Commas,
}

impl Columns {
    /// Column gaps in a line; 0 where it is no row of this kind.
    fn count(self, line: &str) -> usize {
        let inner = line.trim();
        match self {
            Self::Framed if inner.starts_with('|') && inner.len() > 1 => inner.matches('|').count(),
            Self::Framed => 0,
            Self::Pipes => inner.matches('|').count(),
            Self::Tabs => inner.matches('\t').count(),
            Self::Spaces => inner.split("  ").filter(|cell| !cell.trim().is_empty()).count().saturating_sub(1),
            Self::Commas if inner.contains(", ") => 0,
            Self::Commas => inner.matches(',').count(),
        }
    }
}

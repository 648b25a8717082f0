//! What is wrong with a pipeline file: place, message, what to do. Collected, never thrown at the first.

use std::{collections::BTreeSet, fmt, sync::Arc};

/// A position in a file. Line 0 stands for the whole of `file` (a `--set` argument, a file that cannot be read).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was named, or the `--set` argument.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Place {
    /// The whole of `file`.
    pub fn whole(file: &str) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            _ => write!(f, "{}:{}:{}", self.file, self.line, self.column),
        }
    }
}

/// One fault, shown as `file:line:column: message`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub at: Place,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// All faults of a pipeline, in order of place, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(BTreeSet<Problem>);

impl Problems {
    /// Takes in a fault.
    pub fn add(&mut self, at: &Place, message: impl Into<String>) {
        self.0.insert(Problem { at: at.clone(), message: message.into() });
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Number of faults.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// The faults in order of place.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// The problems themselves.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}
impl std::error::Error for Problems {}

/// The end of a message about an unknown name: the nearest known one, else all that are known.
///
/// `; did you mean `b`?` or `; known: `a`, `b``, or `; there are none`.
pub fn suggest<S: AsRef<str>>(name: &str, known: &[S]) -> String {
    let lower = name.to_lowercase();
    let near = known
        .iter()
        .map(|k| (distance(&lower, &k.as_ref().to_lowercase()), k.as_ref()))
        .filter(|(d, k)| *d <= 1.max(k.chars().count().min(lower.chars().count()) / 3))
        .min();
    match near {
        Some((_, k)) => format!("; did you mean `{k}`?"),
        None if known.is_empty() => "; there are none".to_owned(),
        None => format!("; known: {}", list(known)),
    }
}

/// `` `a`, `b`, `c` ``
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|n| format!("`{}`", n.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in [
            ("", "abc", 3),
            ("srouce", "source", 2),
            ("soucre", "source", 1),
            ("kitten", "sitting", 3),
            ("same", "same", 0),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_or_all() {
        assert_eq!(suggest("srouce", &["source", "sql"]), "; did you mean `source`?");
        assert_eq!(suggest("zebra", &["source", "sql"]), "; known: `source`, `sql`");
        assert_eq!(suggest::<&str>("zebra", &[]), "; there are none");
    }
}

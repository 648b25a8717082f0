//! Where the paths in a pipeline point.
//!
//! A relative path of a source, a model or a SQL file is taken from the current directory if something is there, else from
//! the directory of the YAML file, else from the parent of that. `location` is always taken from the current directory.

use crate::{
    pipeline::stage::sql::InputTable,
    storage::{commit::TableCommit, location::Location},
};
use std::path::Path;

/// A table directory with a manifest, else files.
pub async fn external_table(path: &str) -> InputTable {
    let (parent, table) = split_table(path);
    if let Ok(location) = Location::parse(&parent)
        && let Ok(Some(_)) = TableCommit::manifest(&location, &table).await
    {
        return InputTable::Managed { location, table };
    }
    InputTable::Files(path.to_owned())
}

/// A table directory's location and its name there.
pub fn split_table(path: &str) -> (String, String) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some(("", table)) => ("/".to_owned(), table.to_owned()),
        Some((parent, table)) => (parent.to_owned(), table.to_owned()),
        None => (".".to_owned(), trimmed.to_owned()),
    }
}

/// A path or glob as the rule at the top of this file has it.
pub fn resolve(yaml: &Path, text: &str) -> String {
    if text.contains("://") || Path::new(text).is_absolute() || there(text) {
        return text.to_owned();
    }
    let directory = yaml.parent().unwrap_or_else(|| Path::new(""));
    let above = directory.join("..");
    for base in [directory, above.as_path()] {
        let candidate = base.join(text).to_string_lossy().into_owned();
        if there(&candidate) {
            return candidate;
        }
    }
    text.to_owned()
}

pub(super) fn there(text: &str) -> bool {
    Path::new(text).exists()
        || (text.contains(['*', '?', '[']) && glob::glob(text).is_ok_and(|mut m| m.next().is_some()))
}

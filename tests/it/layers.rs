//! Imports point down the list in `src/lib.rs` only (design: layout and boundaries).

use std::{fs, path::Path};

/// Module → the modules of this crate that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cli", &["pipeline", "catalog", "udf", "engine", "models", "text", "storage", "rewards", "train", "eval"]),
    ("pipeline", &["catalog", "udf", "train", "eval", "engine", "rewards", "models", "text", "storage"]),
    ("catalog", &["udf", "engine", "rewards", "text", "storage"]),
    ("udf", &["engine", "rewards", "text", "storage"]),
    ("train", &["engine", "rewards", "models", "text", "storage"]),
    ("eval", &["engine", "rewards", "models", "text", "storage"]),
    ("engine", &["models"]),
    ("models", &[]),
    ("rewards", &["text"]),
    ("text", &[]),
    ("storage", &[]),
];
/// External crate → the only modules that may name it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("tch", &["models", "engine", "train", "eval"]),
    ("datafusion", &["udf", "catalog", "pipeline"]),
    ("object_store", &["storage", "catalog"]),
    ("cudarc", &["engine"]),
];

/// Calls `see(module, file, line number, line)` for each code line of `src/<module>`.
fn each_line(mut see: impl FnMut(&str, &Path, usize, &str)) {
    for (module, _) in MAY_USE {
        let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(module)];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                    if !line.trim_start().starts_with("//") {
                        see(module, &path, number + 1, line);
                    }
                }
            }
        }
    }
}

/// Whether `name::` is used in `line` as a path's first segment.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(&format!("{name}::"))
        .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':'))
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut faults = Vec::new();
    each_line(|module, path, number, line| {
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module).unwrap().1;
        for (other, _) in MAY_USE {
            if *other != module && !allowed.contains(other) && line.contains(&format!("crate::{other}")) {
                faults.push(format!("{}:{number}: {module} uses {other}: {}", path.display(), line.trim()));
            }
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn external_crates_stay_in_their_modules() {
    let mut faults = Vec::new();
    each_line(|module, path, number, line| {
        for (external, homes) in ONLY_IN {
            if !homes.contains(&module) && names(line, external) {
                faults.push(format!("{}:{number}: {module} names {external}: {}", path.display(), line.trim()));
            }
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

//! Finds and reads the task files of a directory. All faults of all files are told at once.

use crate::{
    eval::{
        read::{self, Item},
        tasks::Task,
    },
    storage::location::Location,
};
use anyhow::{Context, bail};

/// A task and its items; without items, its file is missing.
pub(super) struct Found {
    pub(super) task: &'static Task,
    /// Its file, for messages.
    pub(super) shown: String,
    pub(super) items: Vec<Item>,
}

/// Reads the files of the tasks below `directory`: at the harness's place, or by name.
pub(super) async fn read(directory: Option<&str>, tasks: &[&'static Task]) -> anyhow::Result<Vec<Found>> {
    let Some(directory) = directory else { return Ok(Vec::new()) };
    let location = Location::parse(directory).context("tasks")?;
    let (mut found, mut faults): (Vec<Found>, Vec<String>) = (Vec::new(), Vec::new());
    for task in tasks {
        let mut items = Vec::new();
        let mut shown = format!("{location}/{}", task.file);
        for place in [task.file, task.file_name()] {
            let Some(bytes) = location.read(place).await? else { continue };
            shown = format!("{location}/{place}");
            match read::read(task, &shown, &bytes) {
                Ok(read) => items = read,
                Err(error) => faults.push(format!("{error:#}")),
            }
            break;
        }
        found.push(Found { task, shown, items });
    }
    if !faults.is_empty() {
        // Two tasks may share a file.
        faults.dedup();
        bail!("{}", faults.join("\n"));
    }
    if found.iter().all(|f| f.items.is_empty()) {
        let first = tasks.first().map_or("", |t| t.file);
        let name = tasks.first().map_or("", |t| t.file_name());
        bail!("tasks: {directory} holds no file of the tasks; expected are {first} or {name}, and so on");
    }
    Ok(found)
}

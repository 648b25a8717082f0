//! The models that come with the program, for queries that belong to no pipeline.

use crate::udf::models::{CausalLmSpec, FastTextSpec, ModelSpec};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// `assets/` of the current directory, else of the checkout that the program was built in.
pub fn directory() -> Option<PathBuf> {
    let here = Path::new("assets");
    if here.is_dir() {
        return Some(here.to_owned());
    }
    let program = std::env::current_exe().ok()?;
    program.ancestors().skip(1).map(|dir| dir.join("assets")).find(|dir| dir.join("pocket-hq.bin").exists())
}

/// `rephraser`, `dataman` and `hq`: the embedded models, as far as they are there.
pub fn models() -> BTreeMap<String, ModelSpec> {
    let mut models = BTreeMap::new();
    let Some(directory) = directory() else { return models };
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    for (name, folder) in [("rephraser", "pocket-editor"), ("dataman", "pocket-dataman")] {
        let path = directory.join(folder);
        if path.is_dir() {
            let spec = CausalLmSpec { path: text(path), ..CausalLmSpec::default() };
            models.insert(name.to_owned(), ModelSpec::CausalLm(spec));
        }
    }
    let hq = directory.join("pocket-hq.bin");
    if hq.exists() {
        models.insert("hq".to_owned(), ModelSpec::Fasttext(FastTextSpec { path: text(hq) }));
    }
    models
}

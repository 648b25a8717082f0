//! Pipelines: YAML → spec (raw, with locations) → plan (validated) → run. Stages live in [`stage`].

pub mod assets;
pub mod graph;
pub mod key;
pub mod made;
pub mod plan;
pub mod run;
pub mod spec;
pub mod sqlscan;
pub mod stage;
pub mod yaml;

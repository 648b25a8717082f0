//! Pipelines: YAML → spec (raw, with locations) → plan (validated) → run. Stages live in [`stage`].

pub mod stage;

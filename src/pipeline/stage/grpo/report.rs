//! What a running `grpo` stage leaves behind: its two tables, its checkpoints, and the live view.

use super::TABLES;
use crate::{
    pipeline::stage::StageContext,
    storage::{
        commit::TableCommit,
        manifest::{Cost, Manifest},
    },
    train::{
        checkpoint::{self, Store},
        grpo::{
            policy::Policy,
            rollout::Part,
            run::{Hooks, Rows, State},
            table::{self, Metric, Split},
        },
    },
};
use anyhow::Context;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tokio::runtime::Handle;

/// `<model>_rollouts` and `<model>_metrics`, a fragment a step.
pub(super) struct Tables {
    rollouts: TableCommit,
    metrics: TableCommit,
}

impl Tables {
    /// Opens both tables. Without a checkpoint to continue from, nothing of a former run stays in them.
    pub(super) async fn begin(cx: &StageContext, continues: bool) -> anyhow::Result<Self> {
        let mut opened = Vec::new();
        for suffix in TABLES {
            let name = format!("{}{suffix}", cx.output);
            if !continues {
                TableCommit::remove(&cx.location, &name).await?;
            }
            opened.push(
                TableCommit::begin(&cx.location, &name, &cx.key).await.with_context(|| format!("table `{name}`"))?,
            );
        }
        let (Some(metrics), Some(rollouts)) = (opened.pop(), opened.pop()) else {
            unreachable!("two tables were opened")
        };
        Ok(Self { rollouts, metrics })
    }

    /// Writes both manifests.
    pub(super) async fn publish(self, cx: &StageContext, cost: Cost) -> anyhow::Result<()> {
        for table in [self.rollouts, self.metrics] {
            table.publish(Manifest { cost, ..Manifest::describe(cx) }).await?;
        }
        Ok(())
    }
}

async fn write(table: &TableCommit, fragment: &str, batch: &RecordBatch) -> anyhow::Result<()> {
    let mut writer = table.fragment(fragment, batch.schema()).await?;
    writer.write(batch).await?;
    writer.finish(batch.num_rows() as u64).await?;
    Ok(())
}

/// Tables, checkpoints, Ctrl-C and the live view of a running stage.
pub(super) struct StageHooks<'a> {
    cx: &'a StageContext,
    store: &'a Store,
    runtime: Handle,
    tables: Tables,
    parts: &'a [Part],
    /// Last value of each figure, and the first of the held-out ones.
    figures: BTreeMap<String, f64>,
}

impl<'a> StageHooks<'a> {
    pub(super) fn new(
        cx: &'a StageContext,
        store: &'a Store,
        runtime: Handle,
        tables: Tables,
        parts: &'a [Part],
        (state, steps): (&State, u64),
    ) -> Self {
        cx.progress.begin(&cx.output, Some(steps), state.step, "steps");
        Self { cx, store, runtime, tables, parts, figures: BTreeMap::new() }
    }

    pub(super) fn figures(&self) -> BTreeMap<String, f64> {
        let kept = |name: &str| name.starts_with("held_out") || name.starts_with("reward") || name == "kl";
        self.figures.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.clone(), *value)).collect()
    }

    pub(super) fn into_tables(self) -> Tables {
        self.tables
    }

    /// `reward 4.31 (dataman 0.4, bertscore 0.92), held out 4.1, kl 0.012, entropy 1.2, 181 tokens, 812 tok/s`
    fn note(&self) -> String {
        let figure = |name: &str| self.figures.get(name).copied();
        let of_part = |part: &Part| Some(format!("{} {:.2}", part.name, figure(&format!("reward/{}", part.name))?));
        let parts: Vec<String> = self.parts.iter().filter_map(of_part).collect();
        let shown = [
            figure("reward").map(|v| format!("reward {v:.3} ({})", parts.join(", "))),
            figure("held_out/reward").map(|v| format!("held out {v:.3}")),
            figure("kl").map(|v| format!("kl {v:.4}")),
            figure("entropy").map(|v| format!("entropy {v:.2}")),
            figure("completion_length").map(|v| format!("{v:.0} tokens")),
            figure("tokens_per_second").map(|v| format!("{v:.0} tok/s")),
        ];
        shown.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Hooks for StageHooks<'_> {
    fn interrupted(&self) -> bool {
        self.cx.cancel.is_cancelled()
    }

    fn rollouts(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
        let fragment = match rows.split {
            Split::Train => format!("{:08}", rows.step),
            Split::HeldOut => format!("{:08}-held-out", rows.step),
        };
        let batch = table::rollout_batch(self.parts, rows.step, rows.split, &rows.rows)?;
        self.runtime.block_on(write(&self.tables.rollouts, &fragment, &batch)).context("cannot write the rollouts")
    }

    fn metrics(&mut self, metrics: &[Metric], state: &State) -> anyhow::Result<()> {
        for metric in metrics {
            if let Some(name) = metric.name.strip_prefix("held_out/") {
                self.figures.entry(format!("held_out_before/{name}")).or_insert(metric.value);
            }
            self.figures.insert(metric.name.clone(), metric.value);
        }
        if state.step > 0 {
            self.cx.progress.advance(&self.cx.output, 1, &self.note());
        }
        let batch = table::metric_batch(state.step, metrics, state.seconds)?;
        let fragment = format!("{:08}", state.step);
        self.runtime.block_on(write(&self.tables.metrics, &fragment, &batch)).context("cannot write the metrics")
    }

    fn checkpoint(&mut self, policy: &Policy, state: &State) -> anyhow::Result<()> {
        let bytes = checkpoint::to_bytes(&policy.parameters, &policy.adamw, state)?;
        self.runtime.block_on(self.store.save(state.step, bytes))
    }
}

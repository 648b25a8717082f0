//! The mean loss of a model on a `packed` table that it was not trained on.

use super::{Config, tables::TaskRow};
use crate::{
    eval::score::Scorer,
    pipeline::stage::StageContext,
    storage::packed::{ContextReader, Order, Packed},
};
use anyhow::{Context, ensure};
use std::time::Instant;

/// The table, being read.
pub(super) struct Contexts {
    name: String,
    packed: Packed,
    reader: ContextReader,
}

/// Opens the table of that name.
pub(super) async fn open(cx: &StageContext, table: &str) -> anyhow::Result<Contexts> {
    let (location, name) = cx.table(table).context("held_out")?;
    let packed = Packed::open(&location, &name).await.context("held_out")?;
    let reader = packed.read(Order::Stored, 0);
    Ok(Contexts { name: table.to_owned(), packed, reader })
}

impl Contexts {
    /// Its row: mean cross-entropy, in nats, of every token of a context after the first, over all contexts.
    pub(super) fn row(mut self, scorer: &Scorer, config: &Config, cx: &StageContext) -> anyhow::Result<TaskRow> {
        let begin = Instant::now();
        let Packed { context, contexts, .. } = self.packed;
        ensure!(
            context - 1 <= scorer.max_positions(),
            "held_out: the contexts of `{}` have {context} tokens, the model has {} positions; pack shorter ones",
            self.name,
            scorer.max_positions()
        );
        let each = (scorer.batch_tokens() / context).max(1) as u64;
        let (mut total, mut done) = (0.0, 0);
        while done < contexts {
            ensure!(!cx.cancel.is_cancelled(), "stopped; run the same command again to continue");
            let some = each.min(contexts - done);
            let tokens = self.reader.take(some as usize)?;
            self.check(&tokens, scorer)?;
            let rows: Vec<Vec<u32>> = tokens.chunks(context).map(<[u32]>::to_vec).collect();
            total += scorer.losses(&rows)?.iter().sum::<f64>();
            done += some;
            let note = format!("{} {:.3} after {done} of {contexts} contexts", self.name, total / done as f64);
            cx.progress.advance(&cx.output, 0, &note);
        }
        Ok(TaskRow {
            task: self.name,
            metric: "loss",
            status: "scored",
            n: contexts as i64,
            loss: Some(total / contexts as f64),
            model: config.model.clone(),
            seconds: begin.elapsed().as_secs_f64(),
            ..TaskRow::default()
        })
    }

    fn check(&self, tokens: &[u32], scorer: &Scorer) -> anyhow::Result<()> {
        let vocab = scorer.vocab_size();
        let outside = tokens.iter().find(|&&t| t as usize >= vocab);
        ensure!(
            outside.is_none(),
            "held_out: `{}` holds the token {}, the model has {vocab}; it was packed with another tokenizer",
            self.name,
            outside.unwrap_or(&0)
        );
        Ok(())
    }
}

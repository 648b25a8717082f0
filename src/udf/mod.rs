//! SQL functions: one file each, named as the user types it. Arrow in, Arrow out; the work is in [`crate::rewards`],
//! [`crate::text`] and [`crate::engine`]. Functions that need a language model implement [`ModelFunction`]; the operator in
//! [`crate::catalog`] runs them. Plain functions are ordinary `ScalarUDF`s.

use arrow::{array::ArrayRef, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

mod args;
pub mod bertscore;
pub mod chunk;
pub mod clutter_measure;
pub mod corrupt;
pub mod corrupt_page;
pub mod dataman;
pub mod detokenise;
pub mod edit_example;
pub mod edited;
pub mod encoder;
pub mod fasttext_label;
pub mod fasttext_score;
pub mod generate;
pub mod length_ratio;
pub mod lm;
pub mod model_udf;
pub mod models;
pub mod perplexity;
pub mod remote;
pub mod rephrase;
pub mod rephrase_detail;
pub mod repro_reward;
pub mod speaker;
pub mod structure_preserved;
pub mod token_count;

/// A SQL function whose rows are computed by a language model, outside the expression evaluator.
#[async_trait::async_trait]
pub trait ModelFunction: Send + Sync + std::fmt::Debug {
    /// As the user types it, lower case.
    fn name(&self) -> &'static str;
    /// Argument counts accepted, all Utf8. The model argument counts.
    fn arity(&self) -> std::ops::RangeInclusive<usize>;
    /// Type of the result column; always nullable.
    fn return_type(&self) -> DataType;
    /// Which argument (if given) names the model, and the role used without it, e.g. (1, "rephraser").
    fn model_argument(&self) -> (usize, &'static str);
    /// Whether it can run with that model, before anything does.
    ///
    /// # Errors
    /// No model of that name, or one of another kind.
    fn check_model(&self, models: &models::Models, model: &str) -> datafusion::error::Result<()> {
        models.check_language_model(self.name(), model)
    }
    /// The function that takes the call where it names no model and no entry of `models:` has the role's name.
    fn without_model(&self) -> Option<ScalarUDF> {
        None
    }
    /// Computes all rows of a batch concurrently; rows out = rows in, NULL where the row failed. `args` are the arguments without the
    /// model's name, all Utf8 and of one length. The operator calls this with distinct rows that hold no NULL.
    ///
    /// # Errors
    /// Only what concerns every row, such as a model that cannot be loaded. One row's fault goes into [`CallOutput::errors`].
    async fn call(
        &self,
        models: &models::Models,
        model: &str,
        args: &[ArrayRef],
    ) -> datafusion::error::Result<CallOutput>;
}

/// A batch of results; `errors[i]` says why row i failed (its value is NULL then).
#[derive(Debug)]
pub struct CallOutput {
    /// One value per row.
    pub array: ArrayRef,
    /// One entry per row.
    pub errors: Vec<Option<String>>,
    /// Tokens that the model generated for the batch.
    pub output_tokens: u64,
}

/// All model functions, by name.
pub fn model_functions() -> Vec<Arc<dyn ModelFunction>> {
    vec![
        Arc::new(bertscore::BertScore),
        Arc::new(dataman::Dataman),
        Arc::new(generate::Generate),
        Arc::new(perplexity::Perplexity),
        Arc::new(rephrase::Rephrase),
        Arc::new(rephrase_detail::RephraseDetail),
        Arc::new(repro_reward::ReproReward),
        Arc::new(structure_preserved::StructurePreserved),
    ]
}

/// Which argument of a function names a model, and the model without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelArgument {
    /// As the user types it.
    pub function: &'static str,
    /// Counted from 0.
    pub position: usize,
    /// Entry of `models:` that is used where the argument is not given.
    pub role: &'static str,
    /// A language model runs, row by row: the call is slow.
    pub slow: bool,
    /// Without the argument and without the entry, the call needs no model.
    pub optional: bool,
}

/// Plain functions that use a model: name, position, role as in [`ModelArgument`].
const PLAIN_WITH_MODEL: [(&str, usize, &str); 3] =
    [("fasttext_score", 2, "hq"), ("fasttext_label", 1, "hq"), ("token_count", 1, "rephraser")];

/// All functions that use a model. [`repro_reward`] stands for the models of the section `rewards:`.
pub fn model_arguments() -> Vec<ModelArgument> {
    let slow = model_functions().into_iter().map(|function| {
        let (position, role) = function.model_argument();
        let optional = function.without_model().is_some();
        ModelArgument { function: function.name(), position, role, slow: true, optional }
    });
    let plain = PLAIN_WITH_MODEL.into_iter();
    let quick = |(function, position, role)| ModelArgument { function, position, role, slow: false, optional: false };
    slow.chain(plain.map(quick)).collect()
}

/// All plain functions.
pub fn scalar_functions(models: &Arc<models::Models>) -> Vec<ScalarUDF> {
    vec![
        chunk::udf(),
        clutter_measure::udf(),
        corrupt::udf(),
        corrupt_page::udf(),
        detokenise::udf(),
        edit_example::udf(),
        fasttext_label::udf(models),
        fasttext_score::udf(models),
        length_ratio::udf(),
        token_count::udf(models),
    ]
}

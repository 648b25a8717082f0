//! SQL functions: one file each, named as the user types it. Arrow in, Arrow out; the work is in [`crate::rewards`],
//! [`crate::text`] and [`crate::engine`]. Functions that need a language model implement [`ModelFunction`]; the operator in
//! [`crate::catalog`] runs them. Plain functions are ordinary `ScalarUDF`s.

use arrow::{array::ArrayRef, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

mod args;
pub mod chunk;
pub mod corrupt;
pub mod corrupt_page;
pub mod detokenise;
pub mod fasttext_label;
pub mod fasttext_score;
pub mod generate;
pub mod length_ratio;
pub mod lm;
pub mod model_udf;
pub mod models;
pub mod perplexity;
pub mod rephrase;
pub mod rephrase_detail;
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
        Arc::new(generate::Generate),
        Arc::new(perplexity::Perplexity),
        Arc::new(rephrase::Rephrase),
        Arc::new(rephrase_detail::RephraseDetail),
    ]
}

/// All plain functions.
pub fn scalar_functions(models: &Arc<models::Models>) -> Vec<ScalarUDF> {
    vec![
        chunk::udf(),
        corrupt::udf(),
        corrupt_page::udf(),
        detokenise::udf(),
        fasttext_label::udf(models),
        fasttext_score::udf(models),
        length_ratio::udf(),
        structure_preserved::udf(),
        token_count::udf(models),
    ]
}

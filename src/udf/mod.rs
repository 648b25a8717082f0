//! SQL functions: one file each, named as the user types it. Arrow in, Arrow out; the work is in [`crate::rewards`],
//! [`crate::text`] and [`crate::engine`]. Functions that need a language model implement [`ModelFunction`]; the operator in
//! [`crate::catalog`] runs them. Plain functions are ordinary `ScalarUDF`s.

use arrow::{array::ArrayRef, datatypes::DataType};
use std::sync::Arc;

pub mod models;

/// A SQL function whose rows are computed by a language model, outside the expression evaluator.
#[async_trait::async_trait]
pub trait ModelFunction: Send + Sync + std::fmt::Debug {
    fn name(&self) -> &'static str;
    /// Argument counts accepted, all Utf8.
    fn arity(&self) -> std::ops::RangeInclusive<usize>;
    fn return_type(&self) -> DataType;
    /// Which argument (if given) names the model, and the role used without it, e.g. (1, "rephraser").
    fn model_argument(&self) -> (usize, &'static str);
    /// Computes all rows of a batch concurrently; rows out = rows in, NULL where an argument is NULL or the row failed.
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
    pub array: ArrayRef,
    pub errors: Vec<Option<String>>,
    pub output_tokens: u64,
}

/// All model functions, by name.
pub fn model_functions() -> Vec<Arc<dyn ModelFunction>> {
    todo!()
}
/// All plain functions.
pub fn scalar_functions(models: &Arc<models::Models>) -> Vec<datafusion::logical_expr::ScalarUDF> {
    let _ = models;
    todo!()
}

//! `token_count(text [, model])`: tokens of the text by the model's tokenizer, without template or special tokens. The model itself is not
//! loaded.

use super::{
    args::{Plain, Texts, constant},
    models::Models,
    rephrase::external,
};
use crate::text::tokenizer::Special;
use arrow::{array::Int64Array, datatypes::DataType};
use datafusion::{error::Result, logical_expr::ScalarUDF};
use std::sync::Arc;

/// The function to register.
pub fn udf(models: &Arc<Models>) -> ScalarUDF {
    let models = Arc::clone(models);
    Plain::udf(
        "token_count",
        vec![DataType::Utf8; 2],
        1,
        DataType::Int64,
        Arc::new(move |args| {
            let name = constant("token_count", args, 1, "the model")?.unwrap_or("rephraser");
            let tokenizer = models.tokenizer_now(name).map_err(external)?;
            let texts = Texts::new(&args.args[0])?;
            let count = |i| {
                let Some(text) = texts.get(i) else { return Ok(None) };
                let tokens = tokenizer.encode(text, Special::Plain).map_err(external)?;
                Ok(Some(i64::try_from(tokens.len()).unwrap_or(i64::MAX)))
            };
            Ok(Arc::new((0..args.number_rows).map(count).collect::<Result<Int64Array>>()?))
        }),
    )
}

//! `token_count(text [, model])`: tokens of the text by the model's tokenizer, without template or special tokens. `model` may be an entry of
//! `kind: tokenizer`, such as the one that `pack` uses; of a language model only the tokenizer is loaded.

use super::{
    args::{Plain, Texts, constant},
    models::Models,
    rephrase::external,
};
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
            let mut encoder = tokenizer.encoder();
            let mut tokens = Vec::new();
            let mut count = |i| {
                let Some(text) = texts.get(i) else { return Ok(None) };
                tokens.clear();
                encoder.encode(text, &mut tokens).map_err(external)?;
                Ok(Some(i64::try_from(tokens.len()).unwrap_or(i64::MAX)))
            };
            Ok(Arc::new((0..args.number_rows).map(&mut count).collect::<Result<Int64Array>>()?))
        }),
    )
}

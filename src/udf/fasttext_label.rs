//! `fasttext_label(text [, model])`: the most probable label, without `__label__`.

use super::{
    args::{Plain, Texts, constant},
    models::Models,
    rephrase::external,
};
use arrow::{array::StringArray, datatypes::DataType};
use datafusion::{error::Result, logical_expr::ScalarUDF};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use std::sync::Arc;

/// The function to register.
pub fn udf(models: &Arc<Models>) -> ScalarUDF {
    let models = Arc::clone(models);
    Plain::udf(
        "fasttext_label",
        vec![DataType::Utf8; 2],
        1,
        DataType::Utf8,
        Arc::new(move |args| {
            let name = constant("fasttext_label", args, 1, "the model")?.unwrap_or("hq");
            let model = models.fasttext_now(name).map_err(external)?;
            let texts = Texts::new(&args.args[0])?;
            let label = |i| match texts.get(i) {
                Some(text) => model.label(text).map_err(external),
                None => Ok(None),
            };
            let labels = (0..args.number_rows).into_par_iter().map(label).collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StringArray::from(labels)))
        }),
    )
}

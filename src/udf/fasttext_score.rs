//! `fasttext_score(text [, label [, model]])`: the probability of a label; without one, DCLM's rule (reference/repro.md section 5).

use super::{
    args::{Plain, Texts, constant},
    models::Models,
    rephrase::external,
};
use arrow::{array::Float32Array, datatypes::DataType};
use datafusion::{error::Result, logical_expr::ScalarUDF};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use std::sync::Arc;

/// The function to register.
pub fn udf(models: &Arc<Models>) -> ScalarUDF {
    let models = Arc::clone(models);
    Plain::udf(
        "fasttext_score",
        vec![DataType::Utf8; 3],
        1,
        DataType::Float32,
        Arc::new(move |args| {
            let label = constant("fasttext_score", args, 1, "the label")?;
            let name = constant("fasttext_score", args, 2, "the model")?.unwrap_or("hq");
            let model = models.fasttext_now(name).map_err(external)?;
            let texts = Texts::new(&args.args[0])?;
            let score = |i| texts.get(i).map(|text| model.score(text, label)).transpose().map_err(external);
            let scores = (0..args.number_rows).into_par_iter().map(score).collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(Float32Array::from(scores)))
        }),
    )
}

//! `structure_preserved(original, rephrased)`: whether the line structure was kept. Model-free here; the paper asks a model
//! (reference/repro.md section 2.3), which will be the optional third argument.

use super::args::{Plain, Texts};
use crate::text::structure::preserved;
use arrow::{array::BooleanArray, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "structure_preserved",
        vec![DataType::Utf8; 2],
        2,
        DataType::Boolean,
        Arc::new(|args| {
            let (original, rephrased) = (Texts::new(&args.args[0])?, Texts::new(&args.args[1])?);
            let kept = |i| Some(preserved(original.get(i)?, rephrased.get(i)?));
            Ok(Arc::new((0..args.number_rows).map(kept).collect::<BooleanArray>()))
        }),
    )
}

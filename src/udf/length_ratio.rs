//! `length_ratio(original, rephrased)`: characters of the second over characters of the first; NULL where the first is empty.

use super::args::{Plain, Texts};
use crate::rewards::length::length_ratio;
use arrow::{array::Float64Array, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "length_ratio",
        vec![DataType::Utf8; 2],
        2,
        DataType::Float64,
        Arc::new(|args| {
            let (original, rephrased) = (Texts::new(&args.args[0])?, Texts::new(&args.args[1])?);
            let ratio = |i| length_ratio(original.get(i)?, rephrased.get(i)?);
            Ok(Arc::new((0..args.number_rows).map(ratio).collect::<Float64Array>()))
        }),
    )
}

//! `detokenise(text)`: running text from WikiText's spaced tokens.

use super::args::{Plain, Texts};
use crate::text::detokenise::detokenise;
use arrow::{array::StringArray, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "detokenise",
        vec![DataType::Utf8],
        1,
        DataType::Utf8,
        Arc::new(|args| {
            let texts = Texts::new(&args.args[0])?;
            Ok(Arc::new((0..args.number_rows).map(|i| texts.get(i).map(detokenise)).collect::<StringArray>()))
        }),
    )
}

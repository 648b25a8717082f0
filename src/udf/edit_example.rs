//! `edit_example(dirty, clean)`: a text that teaches a model to turn the dirty text into the clean one by keeping and dropping segments
//! ([`crate::text::edits`]). The completion of a pair with an empty prompt, for an `sft` stage with `given: true`.

use super::args::{Plain, Texts};
use crate::text::edits::example;
use arrow::{array::StringArray, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "edit_example",
        vec![DataType::Utf8; 2],
        2,
        DataType::Utf8,
        Arc::new(|args| {
            let (dirty, clean) = (Texts::new(&args.args[0])?, Texts::new(&args.args[1])?);
            let row = |i| Some(example(dirty.get(i)?, clean.get(i)?));
            Ok(Arc::new((0..args.number_rows).map(row).collect::<StringArray>()))
        }),
    )
}

//! `edit_answer(dirty, clean)`: the answer that turns the dirty text into the clean one, for pairs that train a model to edit.

use super::args::{Plain, Texts};
use crate::text::edits::answer;
use arrow::{array::StringArray, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "edit_answer",
        vec![DataType::Utf8; 2],
        2,
        DataType::Utf8,
        Arc::new(|args| {
            let (dirty, clean) = (Texts::new(&args.args[0])?, Texts::new(&args.args[1])?);
            let row = |i| Some(answer(dirty.get(i)?, clean.get(i)?));
            Ok(Arc::new((0..args.number_rows).map(row).collect::<StringArray>()))
        }),
    )
}

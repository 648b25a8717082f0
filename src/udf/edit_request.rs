//! `edit_request(text)`: the text as a model that answers with edits reads it, its segments numbered. With [`super::edit_answer`] it
//! makes training pairs; `rephrase` uses the same code.

use super::args::{Plain, Texts};
use crate::text::edits::Edits;
use arrow::{array::StringArray, datatypes::DataType};
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "edit_request",
        vec![DataType::Utf8],
        1,
        DataType::Utf8,
        Arc::new(|args| {
            let texts = Texts::new(&args.args[0])?;
            let request = |i| Some(Edits::new(texts.get(i)?).request());
            Ok(Arc::new((0..args.number_rows).map(request).collect::<StringArray>()))
        }),
    )
}

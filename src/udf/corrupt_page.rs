//! `corrupt_page(text, seed)`: one chunk of a dirty web page composed of the text's sentences, paragraphs and lines in one of
//! many layouts. Struct{dirty, clean, inserted} as [`super::corrupt`]. Call it with many seeds for many pairs of one text.

use super::{
    args::Plain,
    corrupt::{fields, pairs},
};
use crate::text::corrupt::{Sources, page, sources_of};
use arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "corrupt_page",
        vec![DataType::Utf8, DataType::Int64],
        2,
        DataType::Struct(fields()),
        Arc::new(|args| {
            // Rows of one text with many seeds stand together: its sources are made once.
            let mut last: Option<(String, Sources)> = None;
            pairs(args, &mut |text, seed| {
                if last.as_ref().is_none_or(|(of, _)| of != text) {
                    last = Some((text.to_owned(), sources_of(text)));
                }
                let (_, sources) = last.as_ref().expect("set just above");
                page(sources, seed)
            })
        }),
    )
}

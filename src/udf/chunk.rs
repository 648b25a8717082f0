//! `chunk(text, max_chars [, boundary])`: the pieces that `rephrase` would send. `boundary` is that of a model's `chunk_boundary`: `char`
//! (the default, as in the paper: every `max_chars` characters, whatever stands there) or `line` (at the last paragraph, line, sentence or
//! word that fits; white space at the cuts is left out).

use super::args::{Plain, Texts, constant};
use crate::text::chunk::{Boundary, chunk};
use arrow::{
    array::{Array, ArrayRef, AsArray, ListBuilder, StringBuilder},
    datatypes::{DataType, Field, Int64Type},
};
use datafusion::{common::exec_err, logical_expr::ScalarUDF};
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    let returns = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    Plain::udf(
        "chunk",
        vec![DataType::Utf8, DataType::Int64, DataType::Utf8],
        2,
        returns,
        Arc::new(|args| {
            let boundary = match constant("chunk", args, 2, "the boundary")? {
                None | Some("char") => Boundary::Char,
                Some("line") => Boundary::Line,
                Some(other) => return exec_err!("chunk: the boundary must be 'char' or 'line', not '{other}'"),
            };
            let texts = Texts::new(&args.args[0])?;
            let limits = args.args[1].to_array(args.number_rows)?;
            let limits = limits.as_primitive::<Int64Type>();
            let mut lists = ListBuilder::new(StringBuilder::new());
            for i in 0..args.number_rows {
                let Some(text) = texts.get(i).filter(|_| limits.is_valid(i)) else {
                    lists.append_null();
                    continue;
                };
                let Some(limit) = usize::try_from(limits.value(i)).ok().filter(|&n| n > 0) else {
                    return exec_err!("chunk: max_chars must be at least 1, not {}", limits.value(i));
                };
                for piece in chunk(text, limit, boundary) {
                    lists.values().append_value(piece.text);
                }
                lists.append(true);
            }
            Ok(Arc::new(lists.finish()) as ArrayRef)
        }),
    )
}

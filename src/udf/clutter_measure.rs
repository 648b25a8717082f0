//! `clutter_measure(dirty, clean, inserted, answer)`: how well an answer to a corrupted page keeps the content and drops the clutter.
//! `inserted` holds the clutter one line each (`array_to_string(inserted, chr(10))`); an answer that is NULL counts as empty.
//! Struct{inserted, gone, clean_words, kept, output_words, in_source}: counts, so that sums over rows are shares of all.

use super::args::{Plain, Texts};
use crate::text::corrupt::measure::{Measure, measure_with};
use arrow::{
    array::{ArrayRef, Int64Array, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::{
    common::Result,
    logical_expr::{ScalarFunctionArgs, ScalarUDF},
};
use std::sync::Arc;

/// The counts, in the order of the result's fields.
type Count = (&'static str, fn(&Measure) -> usize);
const COUNTS: [Count; 6] = [
    ("inserted", |m| m.inserted),
    ("gone", |m| m.gone),
    ("clean_words", |m| m.clean_words),
    ("kept", |m| m.kept),
    ("output_words", |m| m.output_words),
    ("in_source", |m| m.in_source),
];

/// The function to register.
pub fn udf() -> ScalarUDF {
    let returns = DataType::Struct(fields());
    Plain::udf("clutter_measure", vec![DataType::Utf8; 4], 4, returns, Arc::new(measures))
}

fn fields() -> Fields {
    COUNTS.iter().map(|(name, _)| Field::new(*name, DataType::Int64, true)).collect()
}

fn measures(args: &ScalarFunctionArgs) -> Result<ArrayRef> {
    let column = |i: usize| Texts::new(&args.args[i]);
    let (dirty, clean, inserted, answer) = (column(0)?, column(1)?, column(2)?, column(3)?);
    let row = |i| {
        let lines: Vec<&str> = inserted.get(i)?.lines().collect();
        Some(measure_with(dirty.get(i)?, clean.get(i)?, &lines, answer.get(i).unwrap_or_default()))
    };
    let rows: Vec<Option<Measure>> = (0..args.number_rows).map(row).collect();
    let count = |value: fn(&Measure) -> usize| -> ArrayRef {
        let of = |m: &Option<Measure>| m.as_ref().map(|m| i64::try_from(value(m)).unwrap_or(i64::MAX));
        Arc::new(rows.iter().map(of).collect::<Int64Array>())
    };
    let valid: Vec<bool> = rows.iter().map(Option::is_some).collect();
    let columns = COUNTS.iter().map(|(_, value)| count(*value)).collect();
    Ok(Arc::new(StructArray::new(fields(), columns, Some(NullBuffer::from(valid)))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::{array::AsArray, datatypes::Int64Type};
    use datafusion::prelude::SessionContext;

    #[test]
    fn counts_in_sql() {
        let context = SessionContext::new();
        context.register_udf(super::udf());
        let sql = "select m['inserted'], m['gone'], m['clean_words'], m['kept'] from (select \
                   clutter_measure('Menu here' || chr(10) || 'The cat.', 'The cat.', 'Menu here', a) m \
                   from (values ('The cat.'), (null), ('Menu here')) v(a))";
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let rows = runtime.block_on(async { context.sql(sql).await.unwrap().collect().await.unwrap() });
        let column = |i: usize| rows[0].column(i).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(
            (column(0), column(1), column(2), column(3)),
            (vec![1; 3], vec![1, 1, 0], vec![2; 3], vec![2, 0, 0])
        );
    }
}

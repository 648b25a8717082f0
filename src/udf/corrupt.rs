//! `corrupt(text, seed)`: the text as a dirty web page; the text's own lines and their order stay.
//! Struct{dirty, clean, inserted}: what a rephraser is given, what it should answer, the clutter lines that were put in.

use super::args::{Plain, Texts};
use crate::text::corrupt::{Page, corrupt_page};
use arrow::{
    array::{Array, ArrayRef, AsArray, ListBuilder, StringBuilder, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields, Int64Type},
};
use datafusion::{
    common::Result,
    logical_expr::{ScalarFunctionArgs, ScalarUDF},
};
use std::sync::Arc;

/// The function to register.
pub fn udf() -> ScalarUDF {
    Plain::udf(
        "corrupt",
        vec![DataType::Utf8, DataType::Int64],
        2,
        DataType::Struct(fields()),
        Arc::new(|args| pairs(args, &mut corrupt_page)),
    )
}

/// Fields of the result, of this function and of `corrupt_page`.
pub(super) fn fields() -> Fields {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    Fields::from(vec![
        Field::new("dirty", DataType::Utf8, true),
        Field::new("clean", DataType::Utf8, true),
        Field::new("inserted", list, true),
    ])
}

/// One pair a row; NULL where the text or the seed is.
pub(super) fn pairs(args: &ScalarFunctionArgs, make: &mut dyn FnMut(&str, u64) -> Page) -> Result<ArrayRef> {
    let texts = Texts::new(&args.args[0])?;
    let seeds = args.args[1].to_array(args.number_rows)?;
    let seeds = seeds.as_primitive::<Int64Type>();
    let (mut dirty, mut clean) = (StringBuilder::new(), StringBuilder::new());
    let mut inserted = ListBuilder::new(StringBuilder::new());
    let mut valid = Vec::with_capacity(args.number_rows);
    for i in 0..args.number_rows {
        let page = texts.get(i).filter(|_| seeds.is_valid(i)).map(|text| make(text, seeds.value(i).cast_unsigned()));
        valid.push(page.is_some());
        dirty.append_option(page.as_ref().map(|p| p.dirty.as_str()));
        clean.append_option(page.as_ref().map(|p| p.clean.as_str()));
        for line in page.iter().flat_map(|p| &p.inserted) {
            inserted.values().append_value(line);
        }
        inserted.append(page.is_some());
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(dirty.finish()), Arc::new(clean.finish()), Arc::new(inserted.finish())];
    Ok(Arc::new(StructArray::new(fields(), columns, Some(NullBuffer::from(valid)))))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use arrow::{array::AsArray, record_batch::RecordBatch};
    use datafusion::prelude::SessionContext;

    fn query(sql: &str) -> Vec<RecordBatch> {
        let context = SessionContext::new();
        for udf in [super::udf(), super::super::corrupt_page::udf(), super::super::detokenise::udf()] {
            context.register_udf(udf);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { context.sql(sql).await.unwrap().collect().await.unwrap() })
    }

    #[test]
    fn pairs_in_sql() {
        let rows = query(
            "select p['dirty'] d, p['clean'] c, p['inserted'] i from (select corrupt_page(t, s) p from (values ('A line of text here. And one more.', 1), \
             ('x', 2), (null, 3)) v(t, s)) order by d nulls last",
        );
        let batch = &rows[0];
        assert_eq!(batch.num_rows(), 3);
        let dirty = batch.column(0).as_string::<i32>();
        let expected = crate::text::corrupt::page_of("x", 2).dirty;
        assert!((0..2).any(|i| dirty.value(i) == expected));
        assert_eq!(
            (batch.column(0).null_count(), batch.column(1).null_count(), batch.column(2).null_count()),
            (1, 1, 1)
        );
    }

    #[test]
    fn text_keeps_its_lines_and_seeds_differ() {
        let rows = query("select corrupt('One line.', s) p from generate_series(1, 40) g(s)");
        let clean: Vec<String> = rows
            .iter()
            .flat_map(|b| {
                b.column(0)
                    .as_struct()
                    .column(1)
                    .as_string::<i32>()
                    .iter()
                    .map(|v| v.unwrap().to_owned())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(clean, vec!["One line."; 40]);
        let dirty: std::collections::BTreeSet<String> = rows
            .iter()
            .flat_map(|b| {
                b.column(0)
                    .as_struct()
                    .column(0)
                    .as_string::<i32>()
                    .iter()
                    .map(|v| v.unwrap().to_owned())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(dirty.len() > 15);
    }

    #[test]
    fn detokenise_in_sql() {
        let rows = query("select detokenise(' a well @-@ known town , once '), detokenise(null)");
        assert_eq!(rows[0].column(0).as_string::<i32>().value(0), "a well-known town, once");
        assert_eq!(rows[0].column(1).null_count(), 1);
    }
}

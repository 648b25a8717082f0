//! Rows of a Parquet file in blocks that never cross a fragment, read page by page: memory does not grow with row groups.

use super::{lines::Block, shape::Body};
use crate::storage::reader::SourceFile;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::file::metadata::ParquetMetaData;

/// Bytes of a block that are aimed at; a single row may be larger.
const BLOCK_BYTES: u64 = 1 << 20;
const BLOCK_ROWS: u64 = 1024;

/// Sends the rows of all fragments that are not `done`, until `send` says stop. An unreadable file is a block with damage.
pub(super) fn blocks(
    file: &SourceFile,
    fragment_rows: u64,
    done: impl Fn(u64) -> bool,
    mut send: impl FnMut(Block<Body>) -> bool,
) {
    let mut row = 0;
    if let Err(error) = try_blocks(file, fragment_rows, done, &mut send, &mut row) {
        let fragment = row / fragment_rows;
        let rows = Body::Lines(super::lines::Lines::default());
        send(Block { fragment, first_row: row, rows, closes: true, last: true, damage: Some(error.to_string()) });
    }
}

fn try_blocks(
    file: &SourceFile,
    fragment_rows: u64,
    done: impl Fn(u64) -> bool,
    send: &mut impl FnMut(Block<Body>) -> bool,
    row: &mut u64,
) -> parquet::errors::Result<()> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.ranges()?)?;
    let total = builder.metadata().file_metadata().num_rows().max(0) as u64;
    let fragments = total.div_ceil(fragment_rows).max(1);
    let wanted: Vec<u64> = (0..fragments).filter(|f| !done(*f)).collect();
    let rows_of = |fragment: u64| fragment * fragment_rows..((fragment + 1) * fragment_rows).min(total);
    let select = |fragment: u64| {
        let rows = rows_of(fragment);
        let count = (rows.end - rows.start) as usize;
        if done(fragment) { RowSelector::skip(count) } else { RowSelector::select(count) }
    };
    let selection: RowSelection = (0..fragments).map(select).filter(|s| s.row_count > 0).collect::<Vec<_>>().into();
    let batch_rows = batch_rows(builder.metadata());
    let mut reader = builder.with_batch_size(batch_rows).with_row_selection(selection).build()?;
    let empty = arrow::array::RecordBatch::new_empty(reader_schema(&reader));
    let mut rest = empty.clone();
    for fragment in wanted {
        let rows = rows_of(fragment);
        *row = rows.start;
        loop {
            if rest.num_rows() == 0 && *row < rows.end {
                rest = match reader.next() {
                    Some(batch) => batch?,
                    None => {
                        return Err(parquet::errors::ParquetError::EOF(format!("only {row} of {total} rows are there")));
                    }
                };
            }
            let take = (rest.num_rows() as u64).min(rows.end - *row) as usize;
            let (first_row, batch) = (*row, rest.slice(0, take));
            rest = rest.slice(take, rest.num_rows() - take);
            *row += take as u64;
            let closes = *row == rows.end;
            let last = closes && fragment + 1 == fragments;
            if !send(Block { fragment, first_row, rows: Body::Batch(batch), closes, last, damage: None }) {
                return Ok(());
            }
            if closes {
                break;
            }
        }
    }
    Ok(())
}

fn reader_schema(reader: &impl arrow::array::RecordBatchReader) -> arrow::datatypes::SchemaRef {
    reader.schema()
}

/// Rows that are about [`BLOCK_BYTES`] together, by the fullest row group.
fn batch_rows(metadata: &ParquetMetaData) -> usize {
    let width =
        |g: &parquet::file::metadata::RowGroupMetaData| g.total_byte_size().max(1) as u64 / g.num_rows().max(1) as u64;
    let widest = metadata.row_groups().iter().map(width).max().unwrap_or(1).max(1);
    (BLOCK_BYTES / widest).clamp(1, BLOCK_ROWS) as usize
}

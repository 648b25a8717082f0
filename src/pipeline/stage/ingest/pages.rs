//! Rows of a Parquet file in blocks that never cross a fragment, read page by page: memory does not grow with row groups.

use super::{lines::Block, shape::Body};
use crate::storage::reader::SourceFile;
use arrow::array::{RecordBatch, RecordBatchReader};
use parquet::{
    arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector},
    errors::ParquetError,
    file::metadata::ParquetMetaData,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block that are aimed at; a single row may be larger.
const BLOCK_BYTES: u64 = 1 << 20;
const BLOCK_ROWS: u64 = 1024;

/// Sends the rows of all fragments that are not `done`, until `send` says stop. An unreadable file ends in a block with damage.
pub(super) fn blocks(
    file: &SourceFile,
    fragment_rows: u64,
    read: &AtomicU64,
    done: impl Fn(u64) -> bool,
    mut send: impl FnMut(Block<Body>) -> bool,
) {
    let mut work = Work { file, fragment_rows, read, done: &done, send: &mut send, row: 0, total: 0 };
    let read = match work.read(None) {
        // A batch is read or not as a whole, so the rows before the damage are had one by one.
        Err(_) if file.trouble().is_none() => work.read(Some(1)),
        other => other,
    };
    if let Err(error) = read {
        let first_row = work.row;
        let rows = Body::Lines(super::lines::Lines::default());
        let damage = Some(error.to_string());
        send(Block { fragment: first_row / fragment_rows, first_row, rows, closes: true, last: true, damage });
    }
}

struct Work<'a> {
    file: &'a SourceFile,
    fragment_rows: u64,
    read: &'a AtomicU64,
    done: &'a dyn Fn(u64) -> bool,
    send: &'a mut dyn FnMut(Block<Body>) -> bool,
    /// The next row to be sent; all before it are sent or done.
    row: u64,
    total: u64,
}

impl Work<'_> {
    /// Reads on from `row`.
    fn read(&mut self, batch_rows: Option<usize>) -> parquet::errors::Result<()> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(self.file.ranges()?)?;
        let total = builder.metadata().file_metadata().num_rows().max(0) as u64;
        self.total = total;
        let fragments = total.div_ceil(self.fragment_rows).max(1);
        let (from, size) = (self.row, self.fragment_rows);
        let begin = |fragment: u64| (fragment * size).max(from);
        let end = |fragment: u64| ((fragment + 1) * size).min(total);
        let wanted: Vec<u64> = (from / size..fragments).filter(|f| !(self.done)(*f)).collect();
        let mut selection = Vec::new();
        let mut at = 0;
        for fragment in &wanted {
            selection.push(RowSelector::skip((begin(*fragment) - at) as usize));
            selection.push(RowSelector::select((end(*fragment) - begin(*fragment)) as usize));
            at = end(*fragment);
        }
        selection.push(RowSelector::skip((total - at) as usize));
        selection.retain(|s| s.row_count > 0);
        let batch_rows = batch_rows.unwrap_or_else(|| fitting_rows(builder.metadata()));
        let mut reader =
            builder.with_batch_size(batch_rows).with_row_selection(RowSelection::from(selection)).build()?;
        let mut rest = RecordBatch::new_empty(reader.schema());
        for fragment in wanted {
            self.row = begin(fragment);
            let (end, last) = (end(fragment), fragment + 1 == fragments);
            if !self.fragment(&mut reader, &mut rest, fragment, end, last)? {
                break;
            }
        }
        Ok(())
    }

    /// Sends the rows of one fragment; false when nobody wants more.
    fn fragment(
        &mut self,
        reader: &mut ParquetRecordBatchReader,
        rest: &mut RecordBatch,
        fragment: u64,
        end: u64,
        last: bool,
    ) -> parquet::errors::Result<bool> {
        loop {
            if rest.num_rows() == 0 && self.row < end {
                *rest = match reader.next() {
                    Some(batch) => batch?,
                    None => return Err(ParquetError::EOF(format!("the rows from {} on are missing", self.row))),
                };
            }
            let take = (rest.num_rows() as u64).min(end - self.row) as usize;
            let (first_row, rows) = (self.row, Body::Batch(rest.slice(0, take)));
            *rest = rest.slice(take, rest.num_rows() - take);
            self.row += take as u64;
            let share = self.row as f64 / self.total.max(1) as f64;
            self.read.store((self.file.meta.size as f64 * share) as u64, Ordering::Relaxed);
            let closes = self.row == end;
            if !(self.send)(Block { fragment, first_row, rows, closes, last: last && closes, damage: None }) {
                return Ok(false);
            }
            if closes {
                return Ok(true);
            }
        }
    }
}

/// Rows that are about [`BLOCK_BYTES`] together, by the fullest row group.
fn fitting_rows(metadata: &ParquetMetaData) -> usize {
    let width =
        |g: &parquet::file::metadata::RowGroupMetaData| g.total_byte_size().max(1) as u64 / g.num_rows().max(1) as u64;
    let widest = metadata.row_groups().iter().map(width).max().unwrap_or(1).max(1);
    (BLOCK_BYTES / widest).clamp(1, BLOCK_ROWS) as usize
}

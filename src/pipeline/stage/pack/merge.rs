//! From sorted runs to the table: for a few fragments at a time, the ranges of all runs that hold their keys are read, sorted and committed.

use super::{
    Work,
    order::Order,
    spill::{Index, JobRecord, Record, Spill, next},
};
use crate::{
    storage::commit::{FailedRow, FragmentWriter, TableCommit},
    text::pack::Span,
};
use arrow::{
    array::{
        ArrayRef, FixedSizeListArray, Int32Builder, Int64Builder, ListArray, RecordBatch, StringBuilder, StructArray,
        UInt16Array, UInt32Array,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Fields, Schema, SchemaRef},
};
use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// Ranges of runs that are read at the same time.
const READS: usize = 8;
/// Tokens of a batch that is handed to the writer.
const BATCH_TOKENS: usize = 1 << 20;

fn fragment_id(fragment: usize) -> String {
    format!("{fragment:06}")
}

/// Whether all fragments are committed.
pub(super) fn is_done(work: &Work, total: &JobRecord, commit: &TableCommit) -> bool {
    (0..work.order(&total.units).len()).all(|fragment| commit.done(&fragment_id(fragment)).is_some())
}

/// The files of the table, in order.
pub(super) fn files(work: &Work, total: &JobRecord) -> Vec<String> {
    (0..work.order(&total.units).len()).map(|fragment| format!("part-{}.parquet", fragment_id(fragment))).collect()
}

/// Commits all fragments that no former run has committed.
pub(super) async fn run(
    work: &Work,
    spill: &Spill,
    commit: &TableCommit,
    jobs: &[JobRecord],
    total: &JobRecord,
) -> anyhow::Result<()> {
    let order = work.order(&total.units);
    let pending: Vec<usize> = (0..order.len()).filter(|f| commit.done(&fragment_id(*f)).is_none()).collect();
    let runs = jobs.iter().flat_map(|job| &job.runs);
    let indices: Vec<Index> =
        stream::iter(runs).map(|run| Index::read(&spill.directory, run)).buffered(READS).try_collect().await?;
    work.cx.progress.begin(&work.cx.output, Some(total.contexts()), commit.totals().kept, "contexts");
    for group in groups(&pending, at_a_time(work, total, order.len())) {
        work.stopped()?;
        let fragments = gather(spill, &indices, &order, group).await?;
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let writes =
            group.iter().zip(fragments).map(|(fragment, entries)| write(work, commit, *fragment, entries, total));
        stream::iter(writes).buffer_unordered(parallel).try_collect::<Vec<()>>().await?;
    }
    Ok(())
}

/// Fragments whose contexts fit into an eighth of the memory; their Parquet form and batches take as much again.
fn at_a_time(work: &Work, total: &JobRecord, fragments: usize) -> usize {
    let contexts = total.contexts() / fragments.max(1) as u64;
    let bytes = contexts as usize * (work.shape.context * work.width + 128);
    (work.memory() / 8 / bytes.max(1)).max(1)
}

/// At most `size` fragments that follow each other.
fn groups(pending: &[usize], size: usize) -> Vec<&[usize]> {
    pending.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(size)).collect()
}

/// Key, serial and bytes of a context.
type Entry = (u64, u64, Bytes);

/// The contexts of each fragment of a group, sorted.
async fn gather(spill: &Spill, indices: &[Index], order: &Order, group: &[usize]) -> anyhow::Result<Vec<Vec<Entry>>> {
    let (from, last) = (order.start(group[0]), order.last(group[group.len() - 1]));
    let mut fragments: Vec<Vec<Entry>> = vec![Vec::new(); group.len()];
    let mut slices = stream::iter(indices).map(|index| index.slice(&spill.directory, from, last)).buffered(READS);
    while let Some(slice) = slices.next().await {
        let mut slice = slice?;
        while let Some((key, serial, bytes)) = next(&mut slice)? {
            if (from..=last).contains(&key) {
                let place = group.partition_point(|fragment| order.last(*fragment) < key);
                fragments[place].push((key, serial, bytes));
            }
        }
    }
    for fragment in &mut fragments {
        fragment.sort_unstable_by_key(|(key, serial, _)| (*key, *serial));
    }
    Ok(fragments)
}

async fn write(
    work: &Work,
    commit: &TableCommit,
    fragment: usize,
    entries: Vec<Entry>,
    total: &JobRecord,
) -> anyhow::Result<()> {
    let schema = schema(work);
    let mut writer = commit.fragment(&fragment_id(fragment), schema.clone()).await?;
    let rows = (BATCH_TOKENS / work.shape.context).max(1);
    let mut rest = entries.into_iter().map(|(_, _, bytes)| bytes).peekable();
    while rest.peek().is_some() {
        let records: Vec<Record> = rest.by_ref().take(rows).map(Record::decode).collect::<anyhow::Result<_>>()?;
        writer.write(&batch(&schema, &records, work)?).await?;
        work.cx.progress.advance(&work.cx.output, records.len() as u64, "");
    }
    // The documents and what became of them are counted once, with the first fragment.
    let documents = if fragment == 0 { total.documents } else { 0 };
    if fragment == 0 {
        fail(&mut writer, &total.failed);
    }
    writer.finish(documents).await.map(drop)
}

fn fail(writer: &mut FragmentWriter, failed: &[(String, String)]) {
    for (id, error) in failed {
        writer.fail(FailedRow { row_id: id.clone(), error: error.clone(), attempts: 1 });
    }
}

fn span_fields() -> Fields {
    Fields::from(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("start", DataType::Int64, false),
        Field::new("offset", DataType::Int32, false),
        Field::new("length", DataType::Int32, false),
    ])
}

fn token_field(work: &Work) -> Arc<Field> {
    let kind = if work.width == 2 { DataType::UInt16 } else { DataType::UInt32 };
    Arc::new(Field::new("item", kind, false))
}

fn span_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(span_fields()), false))
}

fn schema(work: &Work) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("tokens", DataType::FixedSizeList(token_field(work), work.shape.context as i32), false),
        Field::new("length", DataType::Int32, false),
        Field::new("spans", DataType::List(span_field()), false),
    ]))
}

fn batch(schema: &SchemaRef, records: &[Record], work: &Work) -> anyhow::Result<RecordBatch> {
    let mut lengths = Int32Builder::new();
    records.iter().for_each(|r| lengths.append_value(r.length as i32));
    let size = work.shape.context as i32;
    let tokens = FixedSizeListArray::try_new(token_field(work), size, tokens(records, work.width), None)?;
    let columns: Vec<ArrayRef> = vec![Arc::new(tokens), Arc::new(lengths.finish()), Arc::new(spans(records)?)];
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn tokens(records: &[Record], width: usize) -> ArrayRef {
    let all = records.iter().flat_map(|r| r.tokens.chunks_exact(width));
    match width {
        2 => Arc::new(UInt16Array::from_iter_values(all.map(|mut id| id.get_u16_le()))),
        _ => Arc::new(UInt32Array::from_iter_values(all.map(|mut id| id.get_u32_le()))),
    }
}

fn spans(records: &[Record]) -> anyhow::Result<ListArray> {
    let (mut ids, mut starts) = (StringBuilder::new(), Int64Builder::new());
    let (mut offsets, mut lengths) = (Int32Builder::new(), Int32Builder::new());
    for Span { id, start, offset, length } in records.iter().flat_map(|r| &r.spans) {
        ids.append_value(id);
        starts.append_value(*start as i64);
        offsets.append_value(*offset as i32);
        lengths.append_value(*length as i32);
    }
    let columns: Vec<ArrayRef> =
        vec![Arc::new(ids.finish()), Arc::new(starts.finish()), Arc::new(offsets.finish()), Arc::new(lengths.finish())];
    let items = StructArray::try_new(span_fields(), columns, None)?;
    let counts = OffsetBuffer::from_lengths(records.iter().map(|r| r.spans.len()));
    Ok(ListArray::try_new(span_field(), counts, Arc::new(items), None)?)
}

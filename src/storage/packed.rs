//! Reading a `packed` table: contexts of token ids of one length, in a deterministic order, read ahead on a thread of its own so that a
//! trainer never waits for a disk or a bucket. Memory is bounded by a few blocks. Does not know what the ids mean.
//!
//! Order. A pass goes through every context once: files, row groups of a file and contexts of a block of [`BLOCK`] rows are each
//! shuffled by seed + pass. (`pack` has shuffled all contexts before; this only makes passes differ.) The order is a function of
//! seed and position, so a number of contexts is all that a checkpoint needs.

use super::{
    commit::TableCommit,
    location::Location,
    manifest::{DataFile, Manifest},
    reader::SourceFile,
};
use anyhow::{Context, bail, ensure};
use arrow::{
    array::{Array, ArrayRef, AsArray, UInt32Array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, UInt32Type},
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::sync::mpsc::{Receiver, sync_channel};
use tokio::runtime::Handle;

/// Column that holds the contexts.
pub const COLUMN: &str = "tokens";
/// Contexts that are read and shuffled together; 1,024 of 2,049 ids are 8 MB.
pub const BLOCK: usize = 1024;
/// Blocks that wait for the trainer.
const AHEAD: usize = 2;

/// A finished packed table.
#[derive(Debug, Clone)]
pub struct Packed {
    directory: Location,
    /// Its manifest: what it was made from and with which tokenizer.
    pub manifest: Manifest,
    /// Token ids of a context; one less is predicted.
    pub context: usize,
    /// Contexts in the table.
    pub contexts: u64,
}

/// The order of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As stored; a second pass is as the first.
    Stored,
    /// Shuffled by this seed plus the number of the pass.
    Shuffled(u64),
}

impl Packed {
    /// Opens a table of a pipeline's location. Reads its manifest and the footer of its first file.
    ///
    /// # Errors
    /// The table is not finished, is empty, or has no column `tokens` of lists of one length.
    pub async fn open(location: &Location, table: &str) -> anyhow::Result<Self> {
        let manifest = TableCommit::manifest(location, table)
            .await?
            .with_context(|| format!("the table `{table}` is not finished; run the stage that makes it first"))?;
        let directory = location.join(table);
        let contexts = manifest.files.iter().map(|f| f.rows).sum();
        let first = manifest.files.iter().find(|f| f.rows > 0);
        let first = first.with_context(|| format!("the table `{table}` holds no contexts; pack more text"))?.clone();
        let mut packed = Self { directory, manifest, context: 0, contexts };
        let source = packed.source(&first).await?;
        let uri = source.uri();
        packed.context = tokio::task::spawn_blocking(move || context_length(&source))
            .await
            .context("the reading thread ended early")?
            .with_context(|| uri)?;
        ensure!(packed.context >= 2, "the table `{table}` has contexts of {} tokens; two are needed", packed.context);
        Ok(packed)
    }

    /// Contexts from number `from` on, counted over all passes; passes go on for ever. Call on a tokio runtime.
    pub fn read(&self, order: Order, from: u64) -> ContextReader {
        let (sender, blocks) = sync_channel(AHEAD);
        let (packed, runtime) = (self.clone(), Handle::current());
        std::thread::spawn(move || {
            let _inside = runtime.enter();
            let mut give = |block: anyhow::Result<Vec<u32>>| sender.send(block).is_ok();
            if let Err(error) = packed.read_from(order, from, &runtime, &mut give) {
                give(Err(error));
            }
        });
        ContextReader { blocks, block: Vec::new(), at: 0, context: self.context }
    }

    async fn source(&self, file: &DataFile) -> anyhow::Result<SourceFile> {
        let location = self.directory.join(&file.path);
        let meta = location.head().await?.with_context(|| format!("{location} is missing; make the table again"))?;
        Ok(SourceFile::new(location, meta))
    }

    /// Passes without end, until the reader is dropped.
    fn read_from(
        &self,
        order: Order,
        from: u64,
        runtime: &Handle,
        give: &mut dyn FnMut(anyhow::Result<Vec<u32>>) -> bool,
    ) -> anyhow::Result<()> {
        let mut skip = from % self.contexts;
        for pass in from / self.contexts.. {
            let order = PassOrder { order, pass };
            let mut files: Vec<usize> = (0..self.manifest.files.len()).collect();
            order.shuffle(&mut files, [u64::MAX; 2]);
            for number in files {
                let file = &self.manifest.files[number];
                if skip >= file.rows {
                    skip -= file.rows;
                    continue;
                }
                let source = runtime.block_on(self.source(file))?;
                let uri = source.uri();
                if !self.read_file(&source, number as u64, &mut skip, &order, give).with_context(|| uri)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// False when nobody wants more.
    fn read_file(
        &self,
        source: &SourceFile,
        number: u64,
        skip: &mut u64,
        order: &PassOrder,
        give: &mut dyn FnMut(anyhow::Result<Vec<u32>>) -> bool,
    ) -> anyhow::Result<bool> {
        let ranges = source.ranges()?;
        let footer = ArrowReaderMetadata::load(&ranges, Default::default())?;
        let mut groups: Vec<usize> = (0..footer.metadata().num_row_groups()).collect();
        order.shuffle(&mut groups, [number, u64::MAX]);
        for group in groups {
            let rows = footer.metadata().row_group(group).num_rows() as u64;
            if *skip >= rows {
                *skip -= rows;
                continue;
            }
            let skipped_blocks = *skip / BLOCK as u64;
            *skip %= BLOCK as u64;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(ranges.clone(), footer.clone());
            let mask = ProjectionMask::columns(builder.parquet_schema(), [COLUMN]);
            let reader = builder
                .with_projection(mask)
                .with_row_groups(vec![group])
                .with_offset((skipped_blocks * BLOCK as u64) as usize)
                .with_batch_size(BLOCK)
                .build()?;
            for (block, batch) in (skipped_blocks..).zip(reader) {
                let batch = batch?;
                let column = batch.column_by_name(COLUMN).context("the column `tokens` is missing")?;
                let ids = self.contexts_of(column)?;
                let mut rows: Vec<usize> = (0..batch.num_rows()).collect();
                order.shuffle(&mut rows, [number, (group as u64) << 32 | block]);
                let kept = &rows[std::mem::take(skip) as usize..];
                let mut out = Vec::with_capacity(kept.len() * self.context);
                for &row in kept {
                    out.extend_from_slice(&ids.values()[row * self.context..(row + 1) * self.context]);
                }
                if !give(Ok(out)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The ids of all rows, one after another; checks that every row holds a whole context.
    fn contexts_of(&self, column: &ArrayRef) -> anyhow::Result<UInt32Array> {
        let (values, even) = match column.data_type() {
            DataType::FixedSizeList(_, n) => {
                (column.as_fixed_size_list().values().clone(), *n as usize == self.context)
            }
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let (first, last) = (list.offsets()[0], list.offsets()[list.len()]);
                let even = list.offsets().windows(2).all(|w| (w[1] - w[0]) as usize == self.context);
                (list.values().slice(first as usize, (last - first) as usize), even)
            }
            other => bail!("the column `{COLUMN}` is {other}; a packed table holds lists of whole numbers"),
        };
        ensure!(even && column.null_count() == 0, "a context does not hold {} tokens", self.context);
        ensure!(values.null_count() == 0, "a context holds a NULL token");
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let ids = cast_with_options(&values, &DataType::UInt32, &strict).context("a token id is not a whole number")?;
        Ok(ids.as_primitive::<UInt32Type>().clone())
    }
}

/// Tokens of a context, from the first row of the file.
fn context_length(source: &SourceFile) -> anyhow::Result<usize> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(source.ranges()?)?;
    let has: Vec<&str> = builder.schema().fields().iter().map(|f| f.name().as_str()).collect();
    ensure!(has.contains(&COLUMN), "there is no column `{COLUMN}`; a packed table has one (found {})", has.join(", "));
    if let DataType::FixedSizeList(_, n) = builder.schema().field_with_name(COLUMN)?.data_type() {
        return Ok(*n as usize);
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), [COLUMN]);
    let mut reader = builder.with_projection(mask).with_batch_size(1).build()?;
    let batch = reader.next().context("the file holds no rows")??;
    match batch.column(0).data_type() {
        DataType::List(_) => Ok(batch.column(0).as_list::<i32>().value_length(0) as usize),
        other => bail!("the column `{COLUMN}` is {other}; a packed table holds lists of whole numbers"),
    }
}

struct PassOrder {
    order: Order,
    pass: u64,
}

impl PassOrder {
    /// Shuffles by seed + pass and the place in the table.
    fn shuffle(&self, items: &mut [usize], place: [u64; 2]) {
        let Order::Shuffled(seed) = self.order else { return };
        let mut key = [0; 32];
        let parts = [seed.wrapping_add(self.pass), place[0], place[1]];
        for (bytes, part) in key.chunks_exact_mut(8).zip(parts) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        items.shuffle(&mut ChaCha8Rng::from_seed(key));
    }
}

/// Contexts in order, read ahead.
#[derive(Debug)]
pub struct ContextReader {
    blocks: Receiver<anyhow::Result<Vec<u32>>>,
    block: Vec<u32>,
    at: usize,
    context: usize,
}

impl ContextReader {
    /// The next `n` contexts, one after another.
    ///
    /// # Errors
    /// A file cannot be read or does not hold whole contexts; the message names it.
    pub fn take(&mut self, n: usize) -> anyhow::Result<Vec<u32>> {
        let wanted = n * self.context;
        let mut out = Vec::with_capacity(wanted);
        while out.len() < wanted {
            if self.at == self.block.len() {
                self.block = self.blocks.recv().context("the thread that reads the packs ended early")??;
                self.at = 0;
            }
            let some = (wanted - out.len()).min(self.block.len() - self.at);
            out.extend_from_slice(&self.block[self.at..self.at + some]);
            self.at += some;
        }
        Ok(out)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use arrow::{
        array::{FixedSizeListArray, RecordBatch, StringArray, UInt16Array},
        datatypes::{Field, Schema},
    };
    use std::{collections::BTreeSet, sync::Arc};

    /// Contexts of three ids; context i is [i, i + 1, i + 2]. Files of the given sizes.
    async fn table(location: &Location, files: &[usize]) {
        let item = Arc::new(Field::new("item", DataType::UInt16, false));
        let schema = Arc::new(Schema::new(vec![
            Field::new("source", DataType::Utf8, true),
            Field::new(COLUMN, DataType::FixedSizeList(item.clone(), 3), false),
        ]));
        let commit = TableCommit::begin(location, "packed", "key").await.unwrap();
        let mut next = 0u16;
        for (i, &rows) in files.iter().enumerate() {
            let ids: Vec<u16> = (next..next + rows as u16).flat_map(|i| [i, i + 1, i + 2]).collect();
            next += rows as u16;
            let list = FixedSizeListArray::new(item.clone(), 3, Arc::new(UInt16Array::from(ids)), None);
            let names: StringArray = (0..rows).map(|_| Some("a")).collect();
            let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(names), Arc::new(list)]).unwrap();
            let mut writer = commit.fragment(&format!("{i:03}"), schema.clone()).await.unwrap();
            writer.write(&batch).await.unwrap();
            writer.finish(rows as u64).await.unwrap();
        }
        let n = next.into();
        let manifest = Manifest {
            table: "packed".to_owned(),
            key: "key".to_owned(),
            code_version: "1".to_owned(),
            schema: Vec::new(),
            rows: super::super::manifest::Rows { input: n, kept: n, ..Default::default() },
            files: Vec::new(),
            failed_files: Vec::new(),
            inputs: Default::default(),
            params: Default::default(),
            models: Default::default(),
            cost: Default::default(),
        };
        commit.publish(manifest).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_context_once_a_pass_and_from_any_position() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::parse(&directory.path().to_string_lossy()).unwrap();
        table(&location, &[1500, 40, 2600]).await;
        let packed = Packed::open(&location, "packed").await.unwrap();
        assert_eq!((packed.context, packed.contexts), (3, 4140));
        let stored = packed.read(Order::Stored, 0).take(4141).unwrap();
        let expected: Vec<u32> = (0..4140).chain([0]).flat_map(|i| [i, i + 1, i + 2]).collect();
        assert_eq!(stored, expected);
        let two = packed.read(Order::Shuffled(7), 0).take(8280).unwrap();
        let firsts: Vec<u32> = two.chunks(3).map(|c| c[0]).collect();
        for pass in firsts.chunks(4140) {
            assert_eq!(pass.iter().collect::<BTreeSet<_>>().len(), 4140);
        }
        assert_ne!(firsts[..4140], firsts[4140..], "passes differ");
        assert_ne!(packed.read(Order::Shuffled(8), 0).take(4140).unwrap(), two[..4140 * 3], "seeds differ");
        for from in [1, 39, 1023, 1024, 1025, 1541, 4139, 4140, 6000] {
            let mut reader = packed.read(Order::Shuffled(7), from);
            let mut rest = Vec::new();
            for n in [5, 1, 2100] {
                rest.extend(reader.take(n).unwrap());
            }
            assert_eq!(rest, two[from as usize * 3..][..2106 * 3], "from {from}");
        }
    }

    #[tokio::test]
    async fn what_is_no_packed_table_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::parse(&directory.path().to_string_lossy()).unwrap();
        let error = Packed::open(&location, "packed").await.unwrap_err().to_string();
        assert!(error.contains("`packed` is not finished"), "{error}");
        table(&location, &[]).await;
        let error = Packed::open(&location, "packed").await.unwrap_err().to_string();
        assert!(error.contains("holds no contexts"), "{error}");
    }
}

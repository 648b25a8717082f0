//! `export: webdataset`: the contexts as open_lm reads them, in `<table>/webdataset/`: `shard_00000000.tar` and so on, each with members
//! `<shard>_<place>_<uuid>.json.gz` that hold a list of ids, and `manifest.jsonl` with a line for each tar.
//!
//! open_lm cuts the manifest at line feeds and throws the last part away; tokshuf writes no line feed at the end, so that its last tar is never read.
//! Here the last line ends in a line feed and every tar counts (reference/repro.md section 6).

use super::Work;
use crate::storage::{location::Location, reader::SourceFile};
use anyhow::{Context, ensure};
use arrow::{
    array::AsArray,
    compute::cast,
    datatypes::{DataType, UInt32Type},
};
use flate2::{Compression, write::GzEncoder};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use rayon::prelude::*;
use std::{collections::HashSet, io::Write, sync::Arc};
use tokio::runtime::Handle;

const DIRECTORY: &str = "webdataset";
const MANIFEST: &str = "manifest.jsonl";
/// Says which run the tars belong to.
const KEY: &str = "_key";
/// Contexts of a batch that is read.
const BATCH: usize = 512;
const BLOCK: usize = 512;

/// Writes all tars that an interrupted run has not written, then the manifest. `files` are the table's, in order.
pub(super) async fn write(work: &Arc<Work>, files: Vec<String>) -> anyhow::Result<()> {
    let target = work.directory.join(DIRECTORY);
    let present = begin(&target, &work.cx.key).await?;
    let (work, runtime) = (Arc::clone(work), Handle::current());
    let export = move || {
        let mut shards = Shards { work: &work, target, present, runtime, waiting: Vec::new(), sizes: Vec::new() };
        for file in files {
            shards.file(&work.directory.join(&file))?;
        }
        shards.end()
    };
    tokio::task::spawn_blocking(export).await.context("the export ended early")?.context("export: webdataset")
}

/// Names of the tars that are there already; what another run left goes.
async fn begin(target: &Location, key: &str) -> anyhow::Result<HashSet<String>> {
    let ours = target.read(KEY).await?.is_some_and(|found| found == key.as_bytes());
    let mut present = HashSet::new();
    for object in target.list().await? {
        let Some(name) = object.location.filename() else { continue };
        if ours && name.ends_with(".tar") && !name.starts_with('.') {
            present.insert(name.to_owned());
        } else if name != KEY {
            target.delete(name).await?;
        }
    }
    target.write(KEY, key.to_owned().into()).await?;
    Ok(present)
}

struct Shards<'a> {
    work: &'a Work,
    target: Location,
    present: HashSet<String>,
    runtime: Handle,
    /// Contexts of the tar that is being filled.
    waiting: Vec<Vec<u32>>,
    /// Contexts of each finished tar.
    sizes: Vec<usize>,
}

impl Shards<'_> {
    fn file(&mut self, at: &Location) -> anyhow::Result<()> {
        let meta = self.runtime.block_on(at.head())?.with_context(|| format!("{at} is missing"))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(SourceFile::new(at.clone(), meta).ranges()?)?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["tokens"]);
        for batch in builder.with_projection(mask).with_batch_size(BATCH).build()? {
            let batch = batch.with_context(|| at.to_string())?;
            let tokens = batch.column(0).as_fixed_size_list();
            let ids = cast(tokens.values(), &DataType::UInt32)?;
            let ids = ids.as_primitive::<UInt32Type>().values();
            for context in ids.chunks_exact(self.work.shape.context) {
                self.waiting.push(context.to_vec());
                if self.waiting.len() == self.work.config.shard_contexts {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.work.stopped()?;
        let shard = self.sizes.len();
        let contexts = std::mem::take(&mut self.waiting);
        self.sizes.push(contexts.len());
        let name = format!("{}.tar", shard_name(shard));
        if self.present.contains(&name) {
            return Ok(());
        }
        let members: Vec<(String, Vec<u8>)> = contexts
            .par_iter()
            .enumerate()
            .map(|(place, context)| Ok((member_name(shard, place, context), gzipped(context)?)))
            .collect::<anyhow::Result<_>>()?;
        self.runtime.block_on(self.target.write(&name, tar(&members)?.into()))?;
        self.work.cx.progress.advance(&self.work.cx.output, 0, &format!("{} tars", shard + 1));
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        if !self.waiting.is_empty() {
            self.flush()?;
        }
        let line = |(shard, count): (usize, &usize)| {
            format!("{{\"num_sequences\": {count}, \"shard\": \"{}\"}}\n", shard_name(shard))
        };
        let manifest: String = self.sizes.iter().enumerate().map(line).collect();
        self.runtime.block_on(self.target.write(MANIFEST, manifest.into()))
    }
}

fn shard_name(shard: usize) -> String {
    format!("shard_{shard:08}")
}

/// The identifier depends on content and place alone, so that a tar that is written again is the same.
fn member_name(shard: usize, place: usize, context: &[u32]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(shard as u64).to_le_bytes()).update(&(place as u64).to_le_bytes());
    for id in context {
        hasher.update(&id.to_le_bytes());
    }
    let hex = hasher.finalize().to_hex();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
    format!("{shard:08}_{place:08}_{a}-{b}-4{c}-8{d}-{e}.json.gz")
}

fn gzipped(context: &[u32]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(3));
    serde_json::to_writer(&mut encoder, context)?;
    Ok(encoder.finish()?)
}

/// A POSIX (ustar) archive of small regular files.
fn tar(members: &[(String, Vec<u8>)]) -> anyhow::Result<Vec<u8>> {
    let size: usize = members.iter().map(|(_, bytes)| BLOCK + bytes.len().next_multiple_of(BLOCK)).sum();
    let mut out = Vec::with_capacity(size + 2 * BLOCK);
    for (name, bytes) in members {
        ensure!(name.len() < 100, "{name} is too long for a tar");
        out.extend_from_slice(&header(name, bytes.len())?);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

fn header(name: &str, size: usize) -> anyhow::Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    // The time of change is 0, so that equal contexts make equal files.
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    write!(&mut block[148..156], "{sum:06o}\0 ")?;
    Ok(block)
}

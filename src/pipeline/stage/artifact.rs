//! What the stages that make a model share: reading text columns of a table, finding the models they start from, the thread that they train
//! on, and publishing a directory with its manifest last. Knows nothing of how a model learns.

use super::StageContext;
use crate::{
    storage::{
        commit::TableCommit,
        hub,
        lease::LEASE,
        location::Location,
        manifest::{Cost, DataFile, MANIFEST, ModelManifest, Rows},
    },
    train::checkpoint::Store,
    udf::models::ModelSpec,
};
use anyhow::{Context, bail, ensure};
use arrow::{
    array::{Array, RecordBatch, StringArray},
    datatypes::DataType,
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Reads text columns of a finished table, row by row, in the table's order; a row's values stand in the order of `columns`.
///
/// # Errors
/// The table is not finished, has no such column, or the column is not text. Errors name the file.
pub async fn read_columns(
    cx: &StageContext,
    table: &str,
    columns: &[&str],
    mut row: impl FnMut(&[Option<&str>]) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let (location, name) = cx.table(table)?;
    let manifest = TableCommit::manifest(&location, &name)
        .await?
        .with_context(|| format!("the table `{table}` is not finished; run the stage that makes it first"))?;
    let directory = location.join(&name);
    let mut rows = 0;
    for file in &manifest.files {
        let shown = format!("{directory}/{}", file.path);
        let bytes = directory.read(&file.path).await?.with_context(|| format!("{shown} is missing"))?;
        rows += read_file(bytes, columns, &mut row).with_context(|| shown)?;
    }
    Ok(rows)
}

fn read_file(
    bytes: bytes::Bytes,
    columns: &[&str],
    row: &mut impl FnMut(&[Option<&str>]) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let has: Vec<&str> = builder.schema().fields().iter().map(|f| f.name().as_str()).collect();
    for column in columns {
        ensure!(has.contains(column), "there is no column `{column}`; the table has {}", has.join(", "));
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let mut rows = 0;
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let texts = columns.iter().map(|name| text_column(&batch, name)).collect::<anyhow::Result<Vec<_>>>()?;
        for i in 0..batch.num_rows() {
            let values: Vec<Option<&str>> = texts.iter().map(|t| t.is_valid(i).then(|| t.value(i))).collect();
            row(&values)?;
        }
        rows += batch.num_rows() as u64;
    }
    Ok(rows)
}

fn text_column(batch: &RecordBatch, name: &str) -> anyhow::Result<StringArray> {
    let column = batch.column_by_name(name).with_context(|| format!("there is no column `{name}`"))?;
    let text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if !text {
        bail!("the column `{name}` is {}, not text", column.data_type());
    }
    let cast = arrow::compute::cast(column, &DataType::Utf8)?;
    Ok(cast.as_any().downcast_ref::<StringArray>().context("a cast to text gives text")?.clone())
}

/// The local directory of a model: one that this pipeline made, an entry of `models:`, or a path.
///
/// # Errors
/// It is none of these, or it cannot be fetched.
pub async fn model_directory(cx: &StageContext, name: &str) -> anyhow::Result<PathBuf> {
    let path = model_path(cx, name).await?;
    hub::resolve(&path).await.with_context(|| format!("the model `{name}`"))
}

/// The same where only the tokenizer is wanted: the directory need not hold weights.
///
/// # Errors
/// As [`model_directory`].
pub async fn tokenizer_directory(cx: &StageContext, name: &str) -> anyhow::Result<PathBuf> {
    let path = model_path(cx, name).await?;
    hub::resolve_tokenizer(&path).await.with_context(|| format!("the tokenizer `{name}`"))
}

async fn model_path(cx: &StageContext, name: &str) -> anyhow::Result<String> {
    let made = cx.location.join(&format!("models/{name}"));
    if made.read(MANIFEST).await.ok().flatten().is_some() {
        return Ok(made.to_string());
    }
    match cx.models.spec(name) {
        Some(ModelSpec::CausalLm(spec)) => Ok(spec.path.clone()),
        Some(ModelSpec::Tokenizer(spec)) => Ok(spec.path.clone()),
        Some(ModelSpec::Fasttext(_)) => bail!("`{name}` is a fastText classifier; a causal_lm is needed here"),
        Some(ModelSpec::Remote(_)) => bail!("`{name}` is remote; a causal_lm in this process is needed here"),
        Some(ModelSpec::Encoder(spec)) => Ok(spec.path.clone()),
        None => Ok(name.to_owned()),
    }
}

/// What a training stage has to say besides its files.
#[derive(Debug, Default)]
pub struct Summary {
    /// `causal_lm`, `tokenizer` or `fasttext`.
    pub kind: &'static str,
    /// Training examples, as in the manifest.
    pub rows: Rows,
    /// What the training measured at its end, by name.
    pub figures: BTreeMap<String, f64>,
    /// What the training took.
    pub cost: Cost,
}

/// The manifest of the model, if it is finished under this stage's key.
///
/// # Errors
/// The location cannot be read.
pub async fn finished(cx: &StageContext) -> anyhow::Result<Option<ModelManifest>> {
    let Some(bytes) = directory(cx).read(MANIFEST).await? else { return Ok(None) };
    let manifest: Option<ModelManifest> = serde_json::from_slice(&bytes).ok();
    Ok(manifest.filter(|m| m.key == cx.key))
}

/// Runs `work` on a thread of its own, with an empty directory to fill; gives what it returned, and the directory.
///
/// # Errors
/// What `work` reports; no temporary directory can be made.
pub async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&Path) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<(T, TempDir)> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let target = directory.path().to_owned();
    let made =
        tokio::task::spawn_blocking(move || work(&target)).await.context("the training thread ended early")??;
    Ok((made, directory))
}

/// Publishes a trained model; its checkpoints are not needed any more.
///
/// # Errors
/// As [`publish`]; a checkpoint cannot be removed.
pub async fn finish(cx: &StageContext, store: &Store, from: &Path, summary: Summary) -> anyhow::Result<ModelManifest> {
    let manifest = publish(cx, from, summary).await?;
    store.clear().await?;
    cx.progress.end(&cx.output, None);
    Ok(manifest)
}

/// Puts the files of the local directory `from` at `<location>/models/<output>/`, the manifest last; files that an earlier model left
/// there go first.
///
/// # Errors
/// A file cannot be read or written.
pub async fn publish(cx: &StageContext, from: &Path, summary: Summary) -> anyhow::Result<ModelManifest> {
    ensure!(summary.rows.adds_up(), "row arithmetic of {}: {:?} does not add up", cx.output, summary.rows);
    let target = directory(cx);
    target.delete(MANIFEST).await?;
    let mut names = file_names(from)?;
    names.sort();
    for old in target.list().await? {
        let kept = |name: &&str| *name == LEASE || names.iter().any(|n| n == name);
        if let Some(name) = old.location.filename().filter(|name| !kept(name)) {
            target.delete(name).await?;
        }
    }
    let mut files = Vec::new();
    for name in names {
        let path = from.join(&name);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push(DataFile { path: name.clone(), rows: 0, bytes: bytes.len() as u64 });
        target.write(&name, bytes.into()).await?;
    }
    let manifest = ModelManifest {
        model: cx.output.clone(),
        key: cx.key.clone(),
        code_version: cx.code_version.clone(),
        kind: summary.kind.to_owned(),
        files,
        rows: summary.rows,
        inputs: cx.inputs.clone(),
        models: cx.model_hashes.clone(),
        figures: summary.figures,
        cost: summary.cost,
    };
    target.write(MANIFEST, serde_json::to_vec_pretty(&manifest)?.into()).await?;
    Ok(manifest)
}

fn directory(cx: &StageContext) -> Location {
    cx.location.join(&format!("models/{}", cx.output))
}

fn file_names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    entries
        .map(|entry| entry?.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?} is not UTF-8")))
        .collect()
}

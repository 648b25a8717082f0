//! Parameter maps: memory-mapped safetensors in, safetensors out. Never pickle. Does not know which names a model needs.

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::View};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// Parameters by their checkpoint names, e.g. `model.layers.0.self_attn.q_proj.weight`.
#[derive(Debug)]
pub struct Weights {
    /// Name to tensor.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Loads `model.safetensors` or the shards of `model.safetensors.index.json`, converted to `kind`.
    ///
    /// # Errors
    /// No safetensors (a pickle file alone is refused, by name), a missing shard, a truncated file.
    pub fn load(dir: &Path, device: Device, kind: Kind) -> anyhow::Result<Self> {
        Self::load_some(dir, device, kind, &|_| true)
    }

    /// The same, but only the tensors whose names `wanted` accepts are read.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_some(dir: &Path, device: Device, kind: Kind, wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<Self> {
        let mut tensors = BTreeMap::new();
        for file in files(dir)? {
            load_file(&file, (device, kind), wanted, &mut tensors).with_context(|| file.display().to_string())?;
        }
        Ok(Self { tensors })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> anyhow::Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("the weights have no `{name}`"))
    }

    /// Compares names and shapes with those of an architecture.
    ///
    /// # Errors
    /// A parameter is missing, of another shape, or unknown.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> anyhow::Result<()> {
        for (name, shape) in expected {
            let found: Vec<usize> = self.get(name)?.size().iter().map(|&n| n as usize).collect();
            ensure!(found == *shape, "`{name}` has the shape {found:?}; config.json says {shape:?}");
        }
        let known: BTreeSet<&str> = expected.iter().map(|(n, _)| n.as_str()).collect();
        match self.tensors.keys().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => bail!("the weights hold `{unknown}`, which this architecture does not have"),
            None => Ok(()),
        }
    }

    /// Writes `model.safetensors` atomically (temporary name, then rename), each tensor in its own type.
    ///
    /// # Errors
    /// The directory cannot be written; a tensor is of a type that safetensors cannot hold.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let views = self.tensors.iter().map(|(name, tensor)| Ok((name.as_str(), Bytes::new(name, tensor)?)));
        let views = views.collect::<anyhow::Result<Vec<_>>>()?;
        // transformers refuses files that do not say which framework's layout they hold.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".weights-")
            .suffix(".tmp")
            .tempfile_in(parent)
            .with_context(|| format!("{}: cannot write", parent.display()))?;
        safetensors::serialize_to_file(views, Some(metadata), temporary.path())
            .with_context(|| format!("{}: cannot write", path.display()))?;
        File::open(temporary.path()).and_then(|f| f.sync_all()).with_context(|| path.display().to_string())?;
        temporary.persist(path).with_context(|| format!("{}: cannot rename into place", path.display()))?;
        Ok(())
    }
}

/// Total bytes of the safetensors files of a directory, without reading them.
///
/// # Errors
/// As [`Weights::load`], as far as names go.
pub fn bytes_on_disk(dir: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    for file in files(dir)? {
        total += file.metadata().with_context(|| file.display().to_string())?.len();
    }
    Ok(total)
}

/// The files that hold the weights, each checked to exist.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let index = dir.join("model.safetensors.index.json");
    if index.exists() {
        return shards(dir, &index).with_context(|| index.display().to_string());
    }
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let names = std::fs::read_dir(dir).with_context(|| format!("{}: cannot read the directory", dir.display()))?;
    let names: BTreeSet<String> = names.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let pickle = |n: &&String| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| n.ends_with(end));
    if let Some(name) = names.iter().find(pickle) {
        bail!(
            "{}: only pickled weights ({name}), which can run code when loaded and are refused; convert them to model.safetensors",
            dir.display()
        );
    }
    bail!("{}: no model.safetensors and no model.safetensors.index.json", dir.display())
}

fn shards(dir: &Path, index: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(index)?).context("not valid JSON")?;
    let map = json.get("weight_map").and_then(|m| m.as_object()).context("no `weight_map`")?;
    let names: BTreeSet<&str> = map
        .values()
        .map(|v| v.as_str().context("`weight_map` holds a value that is not a file name"))
        .collect::<Result<_, _>>()?;
    ensure!(!names.is_empty(), "`weight_map` is empty");
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let plain = Path::new(name).file_name().is_some_and(|f| f == name);
        ensure!(plain && name.ends_with(".safetensors"), "shard `{name}` is not the name of a safetensors file");
        let file = dir.join(name);
        ensure!(file.exists(), "shard {name} is missing; download the model again");
        files.push(file);
    }
    Ok(files)
}

/// Names of all tensors of a directory, without reading them.
///
/// # Errors
/// As [`Weights::load`], as far as headers go.
pub fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for path in files(dir)? {
        let file = File::open(&path).with_context(|| format!("{}: cannot open", path.display()))?;
        // SAFETY: as in `load_file`.
        let map = unsafe { memmap2::Mmap::map(&file) }.with_context(|| path.display().to_string())?;
        names.extend(parse(&map).with_context(|| path.display().to_string())?.names().into_iter().map(str::to_owned));
    }
    Ok(names)
}

fn parse(bytes: &[u8]) -> anyhow::Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| anyhow::anyhow!("not a whole safetensors file ({e}); it may be cut off, download it again"))
}

fn load_file(
    path: &Path,
    (device, kind): (Device, Kind),
    wanted: &dyn Fn(&str) -> bool,
    into: &mut BTreeMap<String, Tensor>,
) -> anyhow::Result<()> {
    let file = File::open(path).context("cannot open")?;
    // SAFETY: the map is read only and dropped before this function returns. Another process that cuts the file
    // meanwhile would end this one; model files are not written in place (see `save`).
    let map = unsafe { memmap2::Mmap::map(&file) }.context("cannot map into memory")?;
    for (name, view) in parse(&map)?.iter().filter(|(name, _)| wanted(name)) {
        let stored = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            // Buffers such as position ids that old exports carry.
            Dtype::I64 | Dtype::I32 | Dtype::BOOL => continue,
            other => bail!("`{name}` is stored as {other:?}; supported: F32, BF16, F16, F64"),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, stored)?.f_to_kind(kind)?.f_to_device(device)?;
        ensure!(into.insert(name.to_owned(), tensor).is_none(), "`{name}` is in two shards");
    }
    Ok(())
}

/// A contiguous CPU copy (or the tensor itself, where it is that already) that safetensors can read.
struct Bytes {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Bytes {
    fn new(name: &str, tensor: &Tensor) -> anyhow::Result<Self> {
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Double => Dtype::F64,
            Kind::Int64 => Dtype::I64,
            other => bail!("`{name}` is of type {other:?}, which is not written"),
        };
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        Ok(Self { tensor, dtype, shape })
    }
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let len = self.data_len();
        if len == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: the tensor is contiguous on the CPU, lives as long as `self`, and holds `data_len` bytes.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), len) })
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

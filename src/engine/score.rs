//! Scoring whole sequences: the sum of -log p over the tokens of each, by any causal decoder. One thread owns the model, as in the
//! generating engine; jobs wait their turn. Works on token ids; knows nothing of text or SQL.
//!
//! The first token of a sequence is not scored. A sequence longer than the model's positions is cut into windows that share one
//! token, so that every other token is scored once, seeing what stands before it in its window. Windows of like length share a
//! pass; logits exist for a few positions at a time ([`Cut`]). What a job needs goes to the device at once and its figures come back at
//! once: between them nothing waits.

use super::{EngineOptions, Precision, cpu::isa::Isa};
use crate::models::causal::CausalModel;
use anyhow::{Context, ensure};
use std::{path::Path, sync::mpsc};
use tch::{Device, Kind, Tensor};
use tokio::sync::oneshot;

/// How work is cut to suit a device.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Tokens of one pass, padding included.
    tokens: usize,
    /// Positions whose logits exist at the same time.
    chunk: i64,
    /// Windows of a pass are padded to a multiple of this: each new shape costs a GPU's fused attention time.
    step: usize,
}

impl Cut {
    const CPU: Self = Self { tokens: 8192, chunk: 512, step: 1 };
    const GPU: Self = Self { tokens: 1 << 15, chunk: 2048, step: 64 };

    fn of(device: Device) -> Self {
        if device.is_cuda() { Self::GPU } else { Self::CPU }
    }
}

/// What one sequence came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Sum of -log p, natural logarithm.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: u64,
}

impl Score {
    /// exp of the mean -log p.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }
}

struct Job {
    sequences: Vec<Vec<u32>>,
    reply: oneshot::Sender<anyhow::Result<Vec<Score>>>,
}

/// A model that scores. Dropping it ends its thread.
#[derive(Debug)]
pub struct Scorer {
    jobs: mpsc::Sender<Job>,
    vocab: usize,
}

impl Scorer {
    /// Loads a model directory on a thread of its own.
    ///
    /// # Errors
    /// As [`CausalModel::from_dir`]; the device is not there.
    pub fn start(dir: &Path, options: &EngineOptions) -> anyhow::Result<Self> {
        let device = options.device.resolve()?;
        let kind = match options.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Auto => Isa::detect().libtorch_kind(device),
        };
        let model = CausalModel::from_dir(dir, device, kind)?;
        let vocab = model.config().vocab_size();
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let (jobs, waiting) = mpsc::channel::<Job>();
        let work = move || {
            tch::set_num_threads(threads as i32);
            let _guard = tch::no_grad_guard();
            for job in waiting {
                // Whoever asked may have gone away.
                let _ = job.reply.send(score(&model, &job.sequences, Cut::of(device), kind));
            }
        };
        std::thread::Builder::new().name("scorer".into()).spawn(work).context("cannot start the scoring thread")?;
        Ok(Self { jobs, vocab })
    }

    /// Scores sequences, in their order. One of fewer than two tokens has no tokens scored.
    ///
    /// # Errors
    /// A token id that the model does not have; libtorch fails, such as for lack of memory.
    pub async fn score(&self, sequences: Vec<Vec<u32>>) -> anyhow::Result<Vec<Score>> {
        let beyond = sequences.iter().flatten().find(|&&id| id as usize >= self.vocab);
        if let Some(id) = beyond {
            anyhow::bail!("token id {id} is outside the model's vocabulary of {}", self.vocab);
        }
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { sequences, reply }).ok().context("the scoring thread has ended")?;
        answer.await.context("the scoring thread has ended")?
    }
}

/// Part of a sequence: `inputs` ids from `from` on, each predicting the next.
#[derive(Debug, Clone, Copy)]
struct Window {
    sequence: usize,
    from: usize,
    inputs: usize,
}

fn windows(sequences: &[Vec<u32>], positions: usize) -> Vec<Window> {
    let mut all = Vec::new();
    for (sequence, ids) in sequences.iter().enumerate() {
        let targets = ids.len().saturating_sub(1);
        let cut = (0..targets).step_by(positions);
        all.extend(cut.map(|from| Window { sequence, from, inputs: positions.min(targets - from) }));
    }
    // Ties keep their order, so that a result does not depend on anything else.
    all.sort_by_key(|window| window.inputs);
    all
}

/// Windows of like length side by side, and where their numbers lie among those of the job.
struct Pass {
    windows: std::ops::Range<usize>,
    width: usize,
    /// [windows, width] token ids, right padded.
    tokens: usize,
    /// As many places in the flattened pass as there are targets, then the targets.
    places: usize,
    targets: usize,
}

fn passes(sequences: &[Vec<u32>], windows: &[Window], cut: Cut) -> (Vec<Pass>, Vec<i64>) {
    let (mut passes, mut numbers) = (Vec::new(), Vec::new());
    let mut first = 0;
    while first < windows.len() {
        let rest = &windows[first..];
        let width = |n: usize| rest[n - 1].inputs.next_multiple_of(cut.step);
        // Sorted: the last one of a pass is the longest.
        let count = (1..=rest.len()).take_while(|&n| n == 1 || n * width(n) <= cut.tokens).last().unwrap_or(1);
        let (width, tokens) = (width(count), numbers.len());
        numbers.resize(tokens + count * width, 0);
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, window) in rest[..count].iter().enumerate() {
            let ids = &sequences[window.sequence][window.from..=window.from + window.inputs];
            for (i, pair) in ids.windows(2).enumerate() {
                numbers[tokens + row * width + i] = i64::from(pair[0]);
                places.push((row * width + i) as i64);
                targets.push(i64::from(pair[1]));
            }
        }
        let windows = first..first + count;
        passes.push(Pass { windows, width, tokens, places: numbers.len(), targets: targets.len() });
        numbers.extend(places);
        numbers.extend(targets);
        first += count;
    }
    (passes, numbers)
}

fn score(model: &CausalModel, sequences: &[Vec<u32>], cut: Cut, kind: Kind) -> anyhow::Result<Vec<Score>> {
    let mut scores = vec![Score::default(); sequences.len()];
    let windows = windows(sequences, model.config().max_positions());
    if windows.is_empty() {
        return Ok(scores);
    }
    let (passes, numbers) = passes(sequences, &windows, cut);
    let device = model.output_weight().device();
    let numbers = Tensor::f_from_slice(&numbers)?.f_to_device(device)?;
    let part = |at: usize, count: usize| numbers.f_narrow(0, at as i64, count as i64);
    let mut found = Vec::new();
    for pass in &passes {
        let shape = [pass.windows.len() as i64, pass.width as i64];
        let tokens = part(pass.tokens, pass.windows.len() * pass.width)?.f_view(shape)?;
        let hidden = model.hidden(&tokens, kind);
        let hidden = hidden.f_reshape([-1, hidden.size()[2]])?.f_index_select(0, &part(pass.places, pass.targets)?)?;
        let targets = part(pass.places + pass.targets, pass.targets)?;
        for from in (0..pass.targets as i64).step_by(cut.chunk as usize) {
            let count = cut.chunk.min(pass.targets as i64 - from);
            let log_p = model.logits(&hidden.f_narrow(0, from, count)?).f_log_softmax(-1, Kind::Float)?;
            let picked = log_p.f_gather(1, &targets.f_narrow(0, from, count)?.f_unsqueeze(1)?, false)?;
            found.push(picked.f_view([-1])?);
        }
    }
    let found = Vec::<f32>::try_from(Tensor::f_cat(&found, 0)?.f_to_device(Device::Cpu)?)?;
    let mut rest = found.as_slice();
    for window in passes.iter().flat_map(|pass| &windows[pass.windows.clone()]) {
        let (own, later) = rest.split_at(window.inputs);
        let score = &mut scores[window.sequence];
        score.nll -= own.iter().map(|&x| f64::from(x)).sum::<f64>();
        score.tokens += window.inputs as u64;
        rest = later;
    }
    ensure!(rest.is_empty(), "{} positions were scored that nobody asked for", rest.len());
    Ok(scores)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::models::device::DeviceSpec;

    /// The tiny OpenLM has 32 positions: a longer text is the sum of its windows, which share a token.
    #[tokio::test]
    async fn long_sequences_are_read_in_windows() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openlm");
        let options = EngineOptions { device: DeviceSpec::Cpu, precision: Precision::F32, slots: 1, threads: 1 };
        let scorer = Scorer::start(&dir, &options).unwrap();
        let long: Vec<u32> = (0..75).map(|i| i * 7 % 61).collect();
        let parts = vec![long.clone(), long[..33].to_vec(), long[32..65].to_vec(), long[64..].to_vec()];
        let scores = scorer.score(parts).await.unwrap();
        assert_eq!(scores.iter().map(|s| s.tokens).collect::<Vec<_>>(), [74, 32, 32, 10]);
        let sum: f64 = scores[1..].iter().map(|s| s.nll).sum();
        assert!((scores[0].nll - sum).abs() < 1e-4, "{} is not {sum}", scores[0].nll);
        let error = scorer.score(vec![vec![1, 61]]).await.unwrap_err().to_string();
        assert!(error.contains("token id 61"), "{error}");
    }

    /// Padding to a GPU's steps and passes of several sizes change no score.
    #[test]
    fn the_cut_changes_nothing() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openlm");
        let model = CausalModel::from_dir(&dir, Device::Cpu, Kind::Float).unwrap();
        let sequences: Vec<Vec<u32>> = (0..9).map(|n| (0..n * n).map(|i| (i * 7 + n) % 61).collect()).collect();
        let _guard = tch::no_grad_guard();
        let expected = score(&model, &sequences, Cut::CPU, Kind::Float).unwrap();
        for cut in [Cut::GPU, Cut { tokens: 40, chunk: 7, step: 1 }] {
            let found = score(&model, &sequences, cut, Kind::Float).unwrap();
            for (a, b) in expected.iter().zip(&found) {
                assert!(a.tokens == b.tokens && (a.nll - b.nll).abs() < 1e-3, "{cut:?}: {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        let sequences = vec![vec![0; 9], vec![], vec![0], vec![0; 2], vec![0; 5]];
        let mut found: Vec<(usize, usize, usize)> =
            windows(&sequences, 4).iter().map(|w| (w.sequence, w.from, w.inputs)).collect();
        assert!(found.is_sorted_by_key(|w| w.2));
        found.sort_unstable();
        assert_eq!(found, [(0, 0, 4), (0, 4, 4), (3, 0, 1), (4, 0, 4)]);
    }
}

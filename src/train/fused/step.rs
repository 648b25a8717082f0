//! The forward and backward pass of a micro-batch, layer by layer. Each comment names the shapes; N positions, H width, F ffn.

use super::{
    attend::{Gradients, Head, Rows, Scratch},
    buffers::{BlockPlaces, Buffers, Place, Places, floats, halves},
    entropy::Entropy,
    heads::Heads,
    lanes::{LANES, widen},
    norm,
    products::{Into, Products},
    swiglu,
};
use crate::{
    engine::cpu::isa::{Bf16, Isa},
    models::{causal::CausalConfig, openlm::OpenLmConfig},
    train::{
        loss::Terms,
        optim::FlatParameters,
        pretrain::{Contexts, Sums},
        threads::{Shared, split},
    },
};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// The hand-written step of one model.
#[derive(Debug)]
pub struct Fused {
    config: OpenLmConfig,
    places: Places,
    /// [N] bf16: the parameters of this step
    compute: Tensor,
    /// [N] f32: the gradient so far
    grad: Tensor,
    products: Products,
    buffers: Option<Buffers>,
    threads: usize,
}

impl Fused {
    /// Whether this step can compute the model: not another family, another device, a processor without AVX512-BF16, or sizes that do
    /// not fill its vectors (width and ffn multiples of 16, heads of 32).
    pub fn takes(config: &CausalConfig, device: Device) -> bool {
        let CausalConfig::OpenLm(config) = config else { return false };
        let able = Isa::detect().bf16 != Bf16::None && std::is_x86_feature_detected!("avx512bf16");
        able && config.head_dim().is_multiple_of(32) && config.ffn.is_multiple_of(LANES) && device == Device::Cpu
    }

    /// None for a model that it does not take, and for another type than bf16.
    pub fn new(config: &CausalConfig, parameters: &FlatParameters, kind: Kind) -> Option<Self> {
        if kind != Kind::BFloat16 || !Self::takes(config, parameters.master.device()) {
            return None;
        }
        let CausalConfig::OpenLm(config) = config else { return None };
        let total = parameters.master.numel() as i64;
        let largest = parameters.slots().iter().map(|s| s.shape.iter().product::<i64>()).max()?;
        Some(Self {
            config: config.clone(),
            places: Places::new(config, parameters),
            compute: Tensor::empty([total], (Kind::BFloat16, Device::Cpu)),
            grad: Tensor::zeros([total], (Kind::Float, Device::Cpu)),
            products: Products::new(total, largest),
            buffers: None,
            threads: (tch::get_num_threads().max(1)) as usize,
        })
    }

    /// Sums of the loss over the micro-batches, and its gradient [N] f32 (valid until the next call).
    pub fn gradient(&mut self, parameters: &FlatParameters, batches: &[Contexts], terms: Terms) -> (Sums, Tensor) {
        let _guard = tch::no_grad_guard();
        self.compute.copy_(&parameters.master);
        self.products.begin(&self.compute);
        let mut total = Sums::default();
        for (number, batch) in batches.iter().enumerate() {
            let into = if number == 0 { Into::Set } else { Into::Add };
            let length = batch.context() - 1;
            let fits = |b: &Buffers| b.rows == batch.rows && b.length == length;
            let buffers = match self.buffers.take().filter(fits) {
                Some(buffers) => buffers,
                None => {
                    let buffers =
                        Buffers::new(&self.config, (batch.rows, length), self.threads, self.products.logits());
                    self.products.reserve(buffers.largest());
                    buffers
                }
            };
            let mut pass = Pass { model: self, b: buffers, into };
            let inputs: Vec<u32> = batch.ids.chunks(length + 1).flat_map(|c| &c[..length]).copied().collect();
            let targets: Vec<u32> = batch.ids.chunks(length + 1).flat_map(|c| &c[1..]).copied().collect();
            pass.forward(&inputs);
            total += pass.head(&targets, terms);
            pass.backward(&inputs);
            self.buffers = Some(pass.b);
        }
        (total, self.grad.shallow_clone())
    }
}

/// One micro-batch on its way.
struct Pass<'a> {
    model: &'a Fused,
    b: Buffers,
    into: Into,
}

impl Pass<'_> {
    fn positions(&self) -> usize {
        self.b.rows * self.b.length
    }

    /// y = x Wᵀ
    fn project(&self, out: &Tensor, x: &Tensor, weight: Place) {
        self.model.products.project(out, x, &self.model.compute, weight);
    }

    /// dx = dy W, and W's gradient (+)= dyᵀ x
    fn project_back(&self, dx: &Tensor, dy: &Tensor, x: &Tensor, weight: Place, into: Into) {
        let Fused { products, compute, grad, threads, .. } = self.model;
        products.back(dx, (dy, x), (compute, grad), weight, (into, *threads));
    }

    /// Residual addition and norm, over all positions.
    fn norm(&self, x: &Tensor, add: Option<&Tensor>, sum: &Tensor, gain: Place, out: &Tensor, stats: &Tensor) {
        let add = add.map_or(Shared(std::ptr::null_mut()), |t| Shared(halves(t)));
        let (x, sum, stats) = (Shared(floats(x)), Shared(floats(sum)), Shared(floats(stats)));
        let (gain, out) = (Shared(halves(&gain.of(&self.model.compute))), Shared(halves(out)));
        let width = self.model.config.hidden;
        split(self.model.threads, self.positions(), |_, rows| {
            let work = norm::Forward {
                x: { x }.0,
                add: { add }.0,
                sum: { sum }.0,
                gain: { gain }.0,
                out: { out }.0,
                stats: { stats }.0,
                width,
            };
            // SAFETY: the buffers have that many rows; `new` looked for the instructions.
            unsafe { work.run(rows) }
        });
    }

    /// The norm's backward, from `d_in`, into `dx` and (rounded) `d_added`.
    fn norm_back(&mut self, x: &Tensor, gain: Place, stats: &Tensor, first: bool) {
        let width = self.model.config.hidden;
        let mut partial = vec![0f32; self.model.threads * width];
        let own = Shared(partial.as_mut_ptr());
        let (dy, x, stats) = (Shared(halves(&self.b.d_in)), Shared(floats(x)), Shared(floats(stats)));
        let weights = Shared(halves(&gain.of(&self.model.compute)));
        let (dx, rounded) = (Shared(floats(&self.b.dx)), Shared(halves(&self.b.d_added)));
        split(self.model.threads, self.positions(), |part, rows| {
            let work = norm::Backward {
                dy: { dy }.0,
                x: { x }.0,
                stats: { stats }.0,
                gain: { weights }.0,
                dx: { dx }.0,
                first,
                rounded: { rounded }.0,
                width,
            };
            // SAFETY: as in the forward pass; each part has its own row of `partial`.
            unsafe { work.run(rows, own.at(part * width)) }
        });
        self.gain_gradient(&partial, gain);
    }

    /// Sums the threads' parts of a gain's gradient, in the order of the parts.
    fn gain_gradient(&self, partial: &[f32], gain: Place) {
        let width = gain.numel() as usize;
        // SAFETY: the gain's place in the gradient; no other thread is at work.
        let grad = unsafe { std::slice::from_raw_parts_mut(floats(&self.model.grad).add(gain.at as usize), width) };
        if self.into == Into::Set {
            grad.fill(0.0);
        }
        for part in partial.chunks(width) {
            grad.iter_mut().zip(part).for_each(|(g, p)| *g += p);
        }
    }

    fn forward(&mut self, inputs: &[u32]) {
        self.embed(inputs);
        let layers = self.model.config.layers;
        for layer in 0..layers {
            let places = self.model.places.blocks[layer];
            let k = &self.b.kept[layer];
            // [N, H] -> [N, 3H] -> attention -> [N, H]
            let before = (layer > 0).then_some(&self.b.added);
            let x = if layer > 0 { &self.b.kept[layer - 1].x_ffn } else { &k.x_attention };
            self.norm(x, before, &k.x_attention, places.attention_norm, &k.attention_in, &k.attention_stats);
            self.project(&k.qkv, &k.attention_in, places.in_proj);
            self.rotate(layer, places);
            self.attend(layer);
            self.project(&self.b.added, &self.b.kept[layer].mixed, places.out_proj);
            // [N, H] -> [N, 2F] -> [N, F] -> [N, H]
            let k = &self.b.kept[layer];
            self.norm(&k.x_attention, Some(&self.b.added), &k.x_ffn, places.ffn_norm, &k.ffn_in, &k.ffn_stats);
            self.project(&k.both, &k.ffn_in, places.w12);
            let (both, gated, ffn) = (Shared(halves(&k.both)), Shared(halves(&k.gated)), self.model.config.ffn);
            split(self.model.threads, self.positions(), |_, rows| {
                // SAFETY: N rows of 2F and F halves.
                unsafe { swiglu::forward({ both }.0, { gated }.0, ffn, rows) }
            });
            self.project(&self.b.added, &self.b.kept[layer].gated, places.w3);
        }
        let x = &self.b.kept[layers - 1].x_ffn;
        let (norm, b) = (self.model.places.norm, &self.b);
        self.norm(x, Some(&b.added), &b.x_last, norm, &b.last_in, &b.last_stats);
    }

    /// Rows of the embedding, as f32.
    fn embed(&self, inputs: &[u32]) {
        let width = self.model.config.hidden;
        let table = Shared(halves(&self.model.places.embedding.of(&self.model.compute)));
        let to = Shared(floats(&self.b.kept[0].x_attention));
        split(self.model.threads, inputs.len(), |_, rows| {
            for row in rows {
                // SAFETY: ids were checked against the vocabulary; N rows of the stream.
                unsafe { widen(table.at(inputs[row] as usize * width), to.at(row * width), width / LANES, false) }
            }
        });
    }

    fn heads(&self, layer: usize, places: BlockPlaces, rotated: [&Tensor; 2]) -> Heads {
        let (k, c) = (&self.b.kept[layer], &self.model.config);
        let gain = |place: Place| halves(&place.of(&self.model.compute)).cast_const();
        Heads {
            qkv: halves(&k.qkv),
            gains: [gain(places.q_norm), gain(places.k_norm)],
            cos: floats(&self.b.cos),
            sin: floats(&self.b.sin),
            stats: [floats(&k.q_stats), floats(&k.k_stats)],
            rotated: rotated.map(halves),
            width: c.hidden,
            dim: c.head_dim(),
            length: self.b.length,
        }
    }

    fn rotate(&self, layer: usize, places: BlockPlaces) {
        let k = &self.b.kept[layer];
        let mut work = self.heads(layer, places, [&k.q, &k.k]);
        let work = Shared(&raw mut work);
        split(self.model.threads, self.positions(), |_, rows| {
            // SAFETY: read only; N rows in every buffer.
            unsafe { (*{ work }.0).forward(rows) }
        });
    }

    fn head_rows(&self, layer: usize, number: usize) -> Head {
        let (k, c) = (&self.b.kept[layer], &self.model.config);
        let (row, head) = (number / c.heads * self.b.length, number % c.heads);
        let rows = |t: &Tensor, stride: usize, from: usize| Rows {
            at: halves(t).wrapping_add(row * stride + from + head * c.head_dim()),
            stride,
        };
        Head {
            q: rows(&k.q, c.hidden, 0),
            k: rows(&k.k, c.hidden, 0),
            v: rows(&k.qkv, 3 * c.hidden, 2 * c.hidden),
            out: rows(&k.mixed, c.hidden, 0),
            lse: floats(&k.lse).wrapping_add(number * self.b.length),
            length: self.b.length,
            dim: c.head_dim(),
        }
    }

    /// Runs `work` for every head of every sequence.
    fn each_head(&mut self, work: impl Fn(&Self, usize, &mut Scratch) + Sync) {
        let mut scratch = std::mem::take(&mut self.b.scratch);
        let own = Shared(scratch.as_mut_ptr());
        let this = Shared(&raw mut *self);
        let (threads, heads) = (self.model.threads, self.b.rows * self.model.config.heads);
        split(threads, heads, |part, numbers| {
            for number in numbers {
                // SAFETY: `self` is only read; there is one scratch a part.
                unsafe { work(&*{ this }.0, number, &mut *own.at(part)) }
            }
        });
        self.b.scratch = scratch;
    }

    fn attend(&mut self, layer: usize) {
        self.each_head(|pass, number, scratch| {
            // SAFETY: heads lie beside each other; `new` looked for the instructions.
            unsafe { pass.head_rows(layer, number).forward(scratch) }
        });
    }

    /// Loss and the gradient of the last norm's output, a chunk of positions at a time.
    fn head(&mut self, targets: &[u32], terms: Terms) -> Sums {
        let (output, vocab) = (self.model.places.output, self.model.config.vocab_size);
        let total = Mutex::new(vec![Sums::default(); self.model.threads]);
        let mut sums = Sums::default();
        for from in (0..self.positions()).step_by(self.b.chunk) {
            let count = self.b.chunk.min(self.positions() - from);
            let part = |t: &Tensor| t.narrow(0, from as i64, count as i64);
            let logits = self.b.logits.narrow(0, 0, count as i64);
            self.project(&logits, &part(&self.b.last_in), output);
            let (rows, wanted) = (Shared(halves(&logits)), Shared(targets[from..].as_ptr().cast_mut()));
            split(self.model.threads, count, |part, range| {
                let work = Entropy { logits: { rows }.0, targets: { wanted }.0, vocab, terms };
                // SAFETY: `count` rows of logits and targets.
                let found = unsafe { work.run(range) };
                total.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[part] = found;
            });
            let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            total.iter_mut().for_each(|part| sums += std::mem::take(part));
            let into = if from == 0 { self.into } else { Into::Add };
            self.project_back(&part(&self.b.d_in), &logits, &part(&self.b.last_in), output, into);
        }
        sums
    }

    fn backward(&mut self, inputs: &[u32]) {
        let (x, stats) = (self.b.x_last.shallow_clone(), self.b.last_stats.shallow_clone());
        self.norm_back(&x, self.model.places.norm, &stats, true);
        for layer in (0..self.model.config.layers).rev() {
            let places = self.model.places.blocks[layer];
            self.ffn_back(layer, places);
            self.attention_back(layer, places);
        }
        self.embed_back(inputs);
    }

    /// d_added [N, H] -> d_gated [N, F] -> d_both [N, 2F] -> d_in [N, H] -> dx, d_added
    fn ffn_back(&mut self, layer: usize, places: BlockPlaces) {
        let (b, k) = (&self.b, &self.b.kept[layer]);
        self.project_back(&b.d_gated, &b.d_added, &k.gated, places.w3, self.into);
        let ffn = self.model.config.ffn;
        let (d_gated, both, d_both) = (Shared(halves(&b.d_gated)), Shared(halves(&k.both)), Shared(halves(&b.d_both)));
        split(self.model.threads, self.positions(), |_, rows| {
            // SAFETY: N rows of F and 2F halves.
            unsafe { swiglu::backward({ d_gated }.0, { both }.0, { d_both }.0, ffn, rows) }
        });
        self.project_back(&b.d_in, &b.d_both, &k.ffn_in, places.w12, self.into);
        let (x, stats) = (k.x_ffn.shallow_clone(), k.ffn_stats.shallow_clone());
        self.norm_back(&x, places.ffn_norm, &stats, false);
    }

    /// d_added [N, H] -> d_mixed [N, H] -> d_qkv [N, 3H] -> d_in [N, H] -> dx, d_added
    fn attention_back(&mut self, layer: usize, places: BlockPlaces) {
        let (b, k) = (&self.b, &self.b.kept[layer]);
        self.project_back(&b.d_mixed, &b.d_added, &k.mixed, places.out_proj, self.into);
        self.each_head(|pass, number, scratch| {
            let head = pass.head_rows(layer, number);
            let (b, width) = (&pass.b, pass.model.config.hidden);
            let offset = |from: *mut u16, base: &Tensor| (from as usize - halves(base) as usize) / 2;
            let like_q =
                |t: &Tensor| Rows { at: halves(t).wrapping_add(offset(head.q.at, &b.kept[layer].q)), stride: width };
            let v = offset(head.v.at, &b.kept[layer].qkv);
            let gradients = Gradients {
                d_out: like_q(&b.d_mixed),
                dq: like_q(&b.dq),
                dk: like_q(&b.dk),
                dv: Rows { at: halves(&b.d_qkv).wrapping_add(v), stride: 3 * width },
            };
            // SAFETY: as in the forward pass; gradients have the shapes of what they belong to.
            unsafe { head.backward(&gradients, scratch) }
        });
        self.rotate_back(layer, places);
        let (b, k) = (&self.b, &self.b.kept[layer]);
        self.project_back(&b.d_in, &b.d_qkv, &k.attention_in, places.in_proj, self.into);
        let (x, stats) = (k.x_attention.shallow_clone(), k.attention_stats.shallow_clone());
        self.norm_back(&x, places.attention_norm, &stats, false);
    }

    fn rotate_back(&self, layer: usize, places: BlockPlaces) {
        let width = self.model.config.hidden;
        let threads = self.model.threads;
        let mut partial = vec![0f32; 2 * threads * width];
        let own = Shared(partial.as_mut_ptr());
        let mut work = self.heads(layer, places, [&self.b.dq, &self.b.dk]);
        let (work, d_qkv) = (Shared(&raw mut work), Shared(halves(&self.b.d_qkv)));
        split(threads, self.positions(), |part, rows| {
            // SAFETY: each part has a row of `partial` for queries and one for keys; N rows elsewhere.
            unsafe {
                let gains = [own.at(part * width), own.at((threads + part) * width)];
                (*{ work }.0).backward(rows, { d_qkv }.0, gains);
            }
        });
        self.gain_gradient(&partial[..threads * width], places.q_norm);
        self.gain_gradient(&partial[threads * width..], places.k_norm);
    }

    /// Adds rows of dx to the embedding's gradient; threads share the columns, so that rows of one token do not collide.
    fn embed_back(&self, inputs: &[u32]) {
        let (width, place) = (self.model.config.hidden, self.model.places.embedding);
        if self.into == Into::Set {
            let _ = place.of(&self.model.grad).zero_();
        }
        let (dx, grad) = (Shared(floats(&self.b.dx)), Shared(floats(&self.model.grad)));
        split(self.model.threads, width, |_, columns| {
            for (row, &id) in inputs.iter().enumerate() {
                // SAFETY: ids were checked; columns below the width.
                let (from, to) = unsafe { (dx.at(row * width), grad.at(place.at as usize + id as usize * width)) };
                for i in columns.clone() {
                    // SAFETY: as above.
                    unsafe { *to.add(i) += *from.add(i) }
                }
            }
        });
    }
}

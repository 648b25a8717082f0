//! An encoder's blocks in libtorch's operations, on any device: a padded batch of token ids in, hidden states out. For GPUs; a CPU has
//! packed kernels without padding in the engine. Knows nothing of requests, and asks the device for nothing that would make it wait.
//!
//! Hidden states and norms stay in f32, products take inputs of the weights' type: as the packed kernels compute. Attention is libtorch's
//! fused one, but for DeBERTa's, whose position terms are a matrix of their own for every head and sequence.

use super::config::{Activation, EncoderArch, EncoderConfig, Relative};
use crate::models::weights::Weights;
use anyhow::Context;
use tch::{Device, Kind, Tensor};

/// An encoder's first blocks on a device.
#[derive(Debug)]
pub struct EncoderModel {
    config: EncoderConfig,
    kind: Kind,
    device: Device,
    /// [vocab, hidden]
    words: Tensor,
    /// What is added to a word at each position, f32 [positions, hidden]; one row where positions are not absolute.
    places: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// A layer norm, f32.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

/// `x · weightᵀ + bias`
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn of(&self, x: &Tensor) -> anyhow::Result<Tensor> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// One block.
#[derive(Debug)]
struct Layer {
    /// Queries, keys, values of all heads, in that order.
    qkv: Linear,
    positions: Option<Positions>,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

/// Projected relative positions [2 · span, hidden] of one layer, where the family has them; queries are scaled.
#[derive(Debug)]
struct Positions {
    keys: Option<Tensor>,
    queries: Option<Tensor>,
}

/// What a batch's blocks share.
struct Shape {
    batch: i64,
    length: i64,
    /// 0 where a token is, minus infinity where padding is: [batch, 1, 1, length]; None: nothing is padded.
    padding: Option<Tensor>,
    /// Rows of the position tables by distance: see [`EncoderModel::position_scores`].
    rows: Option<(Tensor, Tensor)>,
}

impl EncoderModel {
    /// From plain names ([`super::weights`]) to the device; products run in `kind`.
    ///
    /// # Errors
    /// A parameter is missing; the device has no room.
    pub fn new(
        config: EncoderConfig,
        mut weights: Weights,
        layers: usize,
        device: Device,
        kind: Kind,
    ) -> anyhow::Result<Self> {
        let mut take = Take { weights: &mut weights, device, kind };
        let words = take.product("embeddings.word_embeddings.weight")?;
        let places = places(&config, &mut take)?;
        let norm = take.norm("embeddings.LayerNorm")?;
        let relative = match config.relative {
            Some(_) => Some(take.exact("encoder.rel_embeddings.weight")?),
            None => None,
        };
        let layers = (0..layers).map(|i| layer(&config, i, relative.as_ref(), &mut take));
        let layers = layers.collect::<anyhow::Result<_>>()?;
        Ok(Self { config, kind, device, words, places, norm, layers })
    }

    /// Hidden states f32 [B, T, H] of token ids i64 [B, T], right padded; `lengths` i64 [B], None where nothing is padded. What stands at
    /// padding means nothing. Every row has a token.
    ///
    /// # Errors
    /// The device fails, e.g. runs out of memory.
    pub fn forward(&self, tokens: &Tensor, lengths: Option<&Tensor>) -> anyhow::Result<Tensor> {
        let [batch, length] = tokens.size()[..] else { anyhow::bail!("token ids have two dimensions") };
        let padding = lengths.map(|lengths| self.padding(lengths, length)).transpose()?;
        let rows = self.config.relative.map(|relative| self.distances(relative, length)).transpose()?;
        let shape = Shape { batch, length, padding, rows };
        let mut x = Tensor::f_embedding(&self.words, tokens, -1, false, false)?.f_to_kind(Kind::Float)?;
        if let Some(places) = &self.places {
            let here = match self.config.absolute {
                // Only padding can stand beyond the table.
                Some(_) => {
                    let last = places.size()[0] - 1;
                    let at = Tensor::f_arange(length, (Kind::Int64, self.device))?.f_clamp(0, last)?;
                    places.f_index_select(0, &at)?
                }
                None => places.shallow_clone(),
            };
            x = x.f_add(&here)?;
        }
        x = self.normed(&x, &self.norm)?;
        for layer in &self.layers {
            x = self.block(&x, layer, &shape)?;
        }
        Ok(x)
    }

    fn normed(&self, x: &Tensor, norm: &Norm) -> anyhow::Result<Tensor> {
        let hidden = [self.config.hidden as i64];
        Ok(x.f_layer_norm(hidden, Some(&norm.weight), Some(&norm.bias), self.config.norm_eps, false)?)
    }

    /// Attention, norm, feed-forward, norm (the order of the original transformer).
    fn block(&self, x: &Tensor, layer: &Layer, shape: &Shape) -> anyhow::Result<Tensor> {
        let qkv = layer.qkv.of(&x.f_to_kind(self.kind)?)?;
        let mixed = match self.config.relative {
            Some(relative) => self.disentangled(&qkv, layer.positions.as_ref(), relative, shape)?,
            None => self.plain(&qkv, shape)?,
        };
        let x = self.normed(&x.f_add(&layer.out.of(&mixed)?)?, &layer.attention_norm)?;
        let up = layer.up.of(&x.f_to_kind(self.kind)?)?;
        let up = match self.config.activation {
            Activation::Gelu => up.f_gelu("none")?,
            Activation::GeluTanh => up.f_gelu("tanh")?,
            Activation::Relu => up.f_relu()?,
        };
        self.normed(&x.f_add(&layer.down.of(&up)?)?, &layer.output_norm)
    }

    /// Queries, keys and values of all heads side by side [B, T, 3 · H] to [B, T, H].
    fn plain(&self, qkv: &Tensor, shape: &Shape) -> anyhow::Result<Tensor> {
        let (heads, dim) = (self.config.heads as i64, self.config.head_dim() as i64);
        let split = qkv.f_view([shape.batch, shape.length, 3, heads, dim])?.f_permute([2, 0, 3, 1, 4])?;
        let part = |i: i64| split.f_select(0, i);
        let scale = 1.0 / (dim as f64).sqrt();
        let mask = shape.padding.as_ref();
        let mixed =
            Tensor::f_scaled_dot_product_attention(&part(0)?, &part(1)?, &part(2)?, mask, 0.0, false, scale, false)?;
        Ok(mixed.f_transpose(1, 2)?.f_reshape([shape.batch, shape.length, heads * dim])?)
    }

    /// The same with DeBERTa's position terms (arXiv 2006.03654, equation 4).
    fn disentangled(
        &self,
        qkv: &Tensor,
        positions: Option<&Positions>,
        relative: Relative,
        shape: &Shape,
    ) -> anyhow::Result<Tensor> {
        let (heads, dim, batch, length) =
            (self.config.heads as i64, self.config.head_dim() as i64, shape.batch, shape.length);
        // [3, heads, B · T, dim]: then heads and sequences are one batch of products.
        let split = qkv.f_view([batch * length, 3, heads, dim])?.f_permute([1, 2, 0, 3])?.f_contiguous()?;
        let queries = split.f_select(0, 0)?.f_mul_scalar(scale(&self.config, relative))?;
        let (keys, values) = (split.f_select(0, 1)?, split.f_select(0, 2)?);
        let each = |x: &Tensor| x.f_view([heads * batch, length, dim]);
        let added = match (positions, &shape.rows) {
            (Some(positions), Some(rows)) => self.position_scores(&queries, &keys, positions, rows, shape)?,
            _ => None,
        };
        let transposed = each(&keys)?.f_transpose(1, 2)?;
        let mut scores = match added {
            Some(added) => added.f_view([heads * batch, length, length])?.f_baddbmm_(&each(&queries)?, &transposed)?,
            None => each(&queries)?.f_bmm(&transposed)?,
        };
        if let Some(padding) = &shape.padding {
            let by_head = padding.f_view([1, batch, 1, length])?;
            let _ = scores.f_view([heads, batch, length, length])?.f_add_(&by_head)?;
        }
        scores = scores.f_softmax(-1, None::<Kind>)?;
        let mixed = scores.f_bmm(&each(&values)?)?.f_view([heads, batch, length, dim])?;
        Ok(mixed.f_permute([1, 2, 0, 3])?.f_reshape([batch, length, heads * dim])?)
    }

    /// What positions add to the scores, [heads, B, T, T]; None where the family adds nothing.
    ///
    /// Both products have a column for each distance, in an order in which the element for query i and key j of a row's product lies at
    /// `i · (W - 1) + j + T - 1` (c2p: rows are queries) or `j · (W - 1) + i + T - 1` (p2c: rows are keys), W = 2 T columns: the matrix of
    /// all i and j is a view with these strides, and nothing is gathered.
    fn position_scores(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        positions: &Positions,
        rows: &(Tensor, Tensor),
        shape: &Shape,
    ) -> anyhow::Result<Option<Tensor>> {
        let (heads, dim, batch, length) =
            (self.config.heads as i64, self.config.head_dim() as i64, shape.batch, shape.length);
        let columns = 2 * length;
        let products = |x: &Tensor, table: &Tensor, rows: &Tensor| -> anyhow::Result<Tensor> {
            let table = table.f_index_select(0, rows)?.f_view([columns, heads, dim])?.f_permute([1, 2, 0])?;
            Ok(x.f_bmm(&table)?)
        };
        let view = |x: &Tensor, strides: [i64; 2]| {
            let outer = [batch * length * columns, length * columns];
            let size = [heads, batch, length, length];
            x.f_as_strided(size, [outer[0], outer[1], strides[0], strides[1]], length - 1)
        };
        let of_keys = match &positions.keys {
            Some(table) => Some(view(&products(queries, table, &rows.0)?, [columns - 1, 1])?),
            None => None,
        };
        let of_queries = match &positions.queries {
            Some(table) => Some(view(&products(keys, table, &rows.1)?, [1, columns - 1])?),
            None => None,
        };
        // The sum is made in the order of the scores, whatever the order of the views.
        let whole = || Tensor::f_empty([heads, batch, length, length], (self.kind, self.device));
        Ok(match (of_keys, of_queries) {
            (Some(a), Some(b)) => Some(a.f_add_out(&whole()?, &b)?),
            (Some(one), None) | (None, Some(one)) => Some(one.f_contiguous()?),
            (None, None) => None,
        })
    }

    /// For keys and for queries: which row of the table stands at each column of the products.
    fn distances(&self, relative: Relative, length: i64) -> anyhow::Result<(Tensor, Tensor)> {
        let (span, column) = (relative.span as i64, Tensor::f_arange(2 * length, (Kind::Int64, self.device))?);
        // Column c is the distance i - j = T - 1 - c for keys, c - (T - 1) for queries.
        let keys = column.f_neg()?.f_add_scalar(length - 1 + span)?.f_clamp(0, 2 * span - 1)?;
        let queries = column.f_add_scalar(span - (length - 1))?.f_clamp(0, 2 * span - 1)?;
        Ok((keys, queries))
    }

    fn padding(&self, lengths: &Tensor, length: i64) -> anyhow::Result<Tensor> {
        let places = Tensor::f_arange(length, (Kind::Int64, self.device))?;
        let beyond = places.f_unsqueeze(0)?.f_ge_tensor(&lengths.f_unsqueeze(1)?)?;
        let mut mask = Tensor::f_zeros(beyond.size(), (self.kind, self.device))?;
        Ok(mask.f_masked_fill_(&beyond, f64::NEG_INFINITY)?.f_view([-1, 1, 1, length])?)
    }
}

/// `1 / sqrt(head_dim · terms)`
fn scale(config: &EncoderConfig, relative: Relative) -> f64 {
    1.0 / ((config.head_dim() * relative.terms()) as f64).sqrt()
}

/// Parameters on their way to the device.
struct Take<'a> {
    weights: &'a mut Weights,
    device: Device,
    kind: Kind,
}

impl Take<'_> {
    fn take(&mut self, name: &str, kind: Kind) -> anyhow::Result<Tensor> {
        let found = self.weights.tensors.remove(name);
        let found = found.with_context(|| format!("the weights have no `{name}`"))?;
        Ok(found.f_to_kind(kind)?.f_to_device(self.device)?)
    }
    /// Input of products.
    fn product(&mut self, name: &str) -> anyhow::Result<Tensor> {
        self.take(name, self.kind)
    }
    /// In f32.
    fn exact(&mut self, name: &str) -> anyhow::Result<Tensor> {
        self.take(name, Kind::Float)
    }
    fn norm(&mut self, name: &str) -> anyhow::Result<Norm> {
        Ok(Norm { weight: self.exact(&format!("{name}.weight"))?, bias: self.exact(&format!("{name}.bias"))? })
    }
    fn linear(&mut self, name: &str) -> anyhow::Result<Linear> {
        Ok(Linear { weight: self.product(&format!("{name}.weight"))?, bias: self.product(&format!("{name}.bias"))? })
    }
}

/// Positions and token type 0 in one table.
fn places(config: &EncoderConfig, take: &mut Take) -> anyhow::Result<Option<Tensor>> {
    let kind = match config.token_types {
        0 => None,
        _ => Some(take.exact("embeddings.token_type_embeddings.weight")?.f_narrow(0, 0, 1)?),
    };
    let Some(table) = config.absolute else { return Ok(kind) };
    let rows = take.exact("embeddings.position_embeddings.weight")?;
    let rows = rows.f_narrow(0, table.offset as i64, (table.rows - table.offset) as i64)?;
    Ok(Some(match kind {
        Some(kind) => rows.f_add(&kind)?,
        None => rows,
    }))
}

fn layer(config: &EncoderConfig, index: usize, relative: Option<&Tensor>, take: &mut Take) -> anyhow::Result<Layer> {
    let at = |name: &str| format!("encoder.layer.{index}.{name}");
    let (qkv, positions) = match config.arch {
        EncoderArch::Deberta => (joint(config, &at, take)?, positions(config, &at, relative, take)?),
        EncoderArch::Bert | EncoderArch::Roberta => (separate(&at, take)?, None),
    };
    Ok(Layer {
        qkv,
        positions,
        out: take.linear(&at("attention.output.dense"))?,
        attention_norm: take.norm(&at("attention.output.LayerNorm"))?,
        up: take.linear(&at("intermediate.dense"))?,
        down: take.linear(&at("output.dense"))?,
        output_norm: take.norm(&at("output.LayerNorm"))?,
    })
}

/// BERT's three projections.
fn separate(at: &dyn Fn(&str) -> String, take: &mut Take) -> anyhow::Result<Linear> {
    let mut parts = Vec::new();
    for part in ["query", "key", "value"] {
        parts.push(take.linear(&at(&format!("attention.self.{part}")))?);
    }
    let join = |of: fn(&Linear) -> &Tensor| Tensor::f_cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
    Ok(Linear { weight: join(|p| &p.weight)?, bias: join(|p| &p.bias)? })
}

/// DeBERTa's one projection: for each head its queries, keys and values; biases on queries and values only.
fn joint(config: &EncoderConfig, at: &dyn Fn(&str) -> String, take: &mut Take) -> anyhow::Result<Linear> {
    let (hidden, heads, dim) = (config.hidden as i64, config.heads as i64, config.head_dim() as i64);
    let weight = take.product(&at("attention.self.in_proj.weight"))?;
    let weight = weight.f_view([heads, 3, dim, hidden])?.f_transpose(0, 1)?.f_reshape([3 * hidden, hidden])?;
    let (queries, values) = (take.product(&at("attention.self.q_bias"))?, take.product(&at("attention.self.v_bias"))?);
    let bias = Tensor::f_cat(&[&queries, &queries.f_zeros_like()?, &values], 0)?;
    Ok(Linear { weight, bias })
}

/// The layer's projections of the relative positions.
fn positions(
    config: &EncoderConfig,
    at: &dyn Fn(&str) -> String,
    table: Option<&Tensor>,
    take: &mut Take,
) -> anyhow::Result<Option<Positions>> {
    let (Some(relative), Some(table)) = (config.relative, table) else { return Ok(None) };
    let kind = take.kind;
    let keys = match relative.c2p {
        true => {
            let weight = take.exact(&at("attention.self.pos_proj.weight"))?;
            Some(table.f_linear(&weight, None::<Tensor>)?.f_to_kind(kind)?)
        }
        false => None,
    };
    let queries = match relative.p2c {
        true => {
            let weight = take.exact(&at("attention.self.pos_q_proj.weight"))?;
            let bias = take.exact(&at("attention.self.pos_q_proj.bias"))?;
            let projected = table.f_linear(&weight, Some(bias))?.f_mul_scalar(scale(config, relative))?;
            Some(projected.f_to_kind(kind)?)
        }
        false => None,
    };
    Ok(Some(Positions { keys, queries }))
}

//! Rotary position embeddings: frequencies and tables of cos and sin, with the scalings of Hugging Face configs. Pure
//! numbers; knows nothing of tensors.

use super::config::{DecoderConfig, RopeScaling};
use std::f64::consts::PI;

/// `head_dim / 2` angular frequencies, rounded to f32 as the reference computes them, and the scale of cos and sin.
pub fn frequencies(config: &DecoderConfig) -> (Vec<f32>, f64) {
    let dim = config.head_dim as f64;
    let plain = (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / dim));
    let (scaled, scale): (Vec<f64>, f64) = match config.rope_scaling {
        RopeScaling::None => (plain.collect(), 1.0),
        RopeScaling::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq, high_freq, original } => {
            (plain.map(|f| llama3(f, factor, low_freq, high_freq, original as f64)).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor } => {
            let ramp = yarn_ramp(config, original as f64, beta_fast, beta_slow);
            let mixed = plain.zip(ramp).map(|(f, r)| f / factor * r + f * (1.0 - r)).collect();
            let default = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            (mixed, attention_factor.unwrap_or(default))
        }
    };
    (scaled.into_iter().map(|f| f as f32).collect(), scale)
}

/// cos and sin of positions `0..positions`, each [positions, head_dim / 2], row-major.
pub fn tables(config: &DecoderConfig, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let (freqs, scale) = frequencies(config);
    angles(&freqs, scale, positions)
}

/// The same without scaling, for a head width and a base.
pub fn plain_tables(head_dim: usize, theta: f64, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let freqs: Vec<f32> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect();
    angles(&freqs, 1.0, positions)
}

fn angles(freqs: &[f32], scale: f64, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let mut cos = Vec::with_capacity(positions * freqs.len());
    let mut sin = Vec::with_capacity(positions * freqs.len());
    for position in 0..positions {
        for &freq in freqs {
            // The reference multiplies in f32, so the angle is rounded before cos and sin are taken.
            let angle = f64::from(position as f32 * freq);
            cos.push((angle.cos() * scale) as f32);
            sin.push((angle.sin() * scale) as f32);
        }
    }
    (cos, sin)
}

/// Llama 3.1: wavelengths over `original / low` are stretched, those under `original / high` kept, a ramp between.
fn llama3(freq: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / freq;
    if wavelength > original / low {
        freq / factor
    } else if wavelength < original / high {
        freq
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

/// YaRN (arXiv 2309.00071), section 3.2: share of interpolation per frequency, 0 for fast ones to 1 for slow ones.
fn yarn_ramp(config: &DecoderConfig, original: f64, beta_fast: f64, beta_slow: f64) -> Vec<f64> {
    let dim = config.head_dim as f64;
    let at = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln());
    let low = at(beta_fast).floor().max(0.0);
    let mut high = at(beta_slow).ceil().min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    (0..config.head_dim / 2).map(|i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
}

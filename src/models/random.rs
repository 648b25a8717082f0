//! Random numbers for new parameters, from our own generator, so that they do not depend on libtorch's. Knows no shapes.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// `n` normal numbers of that standard deviation, by Box and Muller's method.
pub fn normal(rng: &mut ChaCha8Rng, n: usize, std: f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let (a, b) = pair(rng, std);
        out.push(a as f32);
        out.push(b as f32);
    }
    out.truncate(n);
    out
}

/// The same from the part of the distribution that lies within `bound` standard deviations; others are drawn again.
pub fn truncated_normal(rng: &mut ChaCha8Rng, n: usize, std: f64, bound: f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let (a, b) = pair(rng, std);
        out.extend([a, b].into_iter().filter(|x| x.abs() <= bound * std).map(|x| x as f32));
    }
    out.truncate(n);
    out
}

/// Two independent normal numbers.
fn pair(rng: &mut ChaCha8Rng, std: f64) -> (f64, f64) {
    let radius = std * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = 2.0 * std::f64::consts::PI * rng.random::<f64>();
    (radius * angle.cos(), radius * angle.sin())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// A normal distribution cut at 3 keeps a standard deviation of 0.98658 (1 - 2·3·φ(3)/(2Φ(3) - 1), by hand, square root).
    #[test]
    fn truncated_at_three_deviations() {
        let values = truncated_normal(&mut ChaCha8Rng::seed_from_u64(5), 400_001, 0.5, 3.0);
        assert_eq!(values.len(), 400_001);
        assert!(values.iter().all(|v| v.abs() <= 1.5));
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let std = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 0.003, "mean {mean}");
        assert!((std - 0.5 * 0.98658).abs() < 0.003, "deviation {std}");
        let beyond = values.iter().filter(|v| v.abs() > 1.0).count() as f64 / n;
        assert!((beyond - (0.0455 - 0.0027) / 0.9973).abs() < 0.003, "{beyond} beyond two deviations");
    }
}

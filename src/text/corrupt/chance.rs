//! The random stream of the corrupter: one seed, one stream, the same draws on every machine.

use rand::{Rng as _, SeedableRng};

/// ChaCha8 gives the same numbers for a seed on every platform and in every version of the crate.
pub(crate) type Rng = rand_chacha::ChaCha8Rng;

pub(crate) fn seeded(seed: u64) -> Rng {
    Rng::seed_from_u64(seed)
}

/// True with probability `p`.
pub(crate) fn chance(rng: &mut Rng, p: f64) -> bool {
    rng.random_bool(p.clamp(0.0, 1.0))
}

/// A number of `low..=high`. Drawn as u32 so that it does not depend on the width of usize.
pub(crate) fn between(rng: &mut Rng, low: usize, high: usize) -> usize {
    rng.random_range(low as u32..=high.max(low) as u32) as usize
}

/// One of the items.
pub(crate) fn pick<'a, T: ?Sized>(rng: &mut Rng, items: &[&'a T]) -> &'a T {
    items[between(rng, 0, items.len() - 1)]
}

/// One character of a string.
pub(crate) fn pick_char(rng: &mut Rng, text: &str) -> char {
    let at = between(rng, 0, text.chars().count() - 1);
    text.chars().nth(at).expect("the index is below the count")
}

/// An item drawn in proportion to its weight.
pub(crate) fn weighted<T: Copy>(rng: &mut Rng, items: &[(T, u32)]) -> T {
    let total: u32 = items.iter().map(|item| item.1).sum();
    let mut at = rng.random_range(0..total);
    for (item, weight) in items {
        if at < *weight {
            return *item;
        }
        at -= weight;
    }
    unreachable!("the draw is below the sum of weights")
}

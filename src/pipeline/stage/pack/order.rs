//! Where each context goes: by a keyed hash (a uniform shuffle) or by its own number. Pure.

/// Tokens of a fragment, on average: 32 MiB of 16-bit ids.
const FRAGMENT_TOKENS: usize = 1 << 24;
/// Contexts of a fragment at most, where they are short.
const FRAGMENT_CONTEXTS: usize = 1 << 16;

/// Contexts of a fragment, on average; a function of their length alone.
pub(super) fn fragment_contexts(context: usize) -> u64 {
    (FRAGMENT_TOKENS / context).clamp(1, FRAGMENT_CONTEXTS) as u64
}

/// Which context: number of its unit, and its number in the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serial {
    pub(super) unit: u32,
    pub(super) context: u32,
}

impl Serial {
    pub(super) fn number(self) -> u64 {
        u64::from(self.unit) << 32 | u64::from(self.context)
    }
}

/// The key that contexts are sorted by. Equal keys are ordered by serial.
pub(super) fn key(seed: Option<u64>, serial: Serial) -> u64 {
    let Some(seed) = seed else { return serial.number() };
    let mut input = [0; 16];
    input[..8].copy_from_slice(&seed.to_le_bytes());
    input[8..].copy_from_slice(&serial.number().to_le_bytes());
    let mut key = [0; 8];
    key.copy_from_slice(&blake3::hash(&input).as_bytes()[..8]);
    u64::from_le_bytes(key)
}

/// Cuts the range of keys into fragments of about equal size.
#[derive(Debug)]
pub(super) struct Order {
    /// First key of each fragment but the first.
    starts: Vec<u64>,
}

impl Order {
    /// `units` are the numbers of contexts of the units, in order. The cut depends on these alone.
    pub(super) fn new(seed: Option<u64>, units: &[u32], size: u64) -> Self {
        let total: u64 = units.iter().map(|n| u64::from(*n)).sum();
        let fragments = total.div_ceil(size).max(1);
        if seed.is_some() {
            let start = |i: u64| ((u128::from(i) << 64) / u128::from(fragments)) as u64;
            return Self { starts: (1..fragments).map(start).collect() };
        }
        let mut starts = Vec::new();
        let (mut before, mut next) = (0u64, size);
        for (unit, count) in (0u32..).zip(units) {
            while next < before + u64::from(*count) && (starts.len() as u64) + 1 < fragments {
                starts.push(Serial { unit, context: (next - before) as u32 }.number());
                next += size;
            }
            before += u64::from(*count);
        }
        Self { starts }
    }

    /// Number of fragments, at least 1.
    pub(super) fn len(&self) -> usize {
        self.starts.len() + 1
    }

    /// First key of a fragment.
    pub(super) fn start(&self, fragment: usize) -> u64 {
        if fragment == 0 { 0 } else { self.starts[fragment - 1] }
    }

    /// Last key of a fragment.
    pub(super) fn last(&self, fragment: usize) -> u64 {
        self.starts.get(fragment).map_or(u64::MAX, |next| next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_cover_all_keys_without_overlap() {
        for seed in [Some(7), None] {
            for units in [vec![], vec![1], vec![8192], vec![8193], vec![5000, 0, 5000, 30_000, 1]] {
                let order = Order::new(seed, &units, 8192);
                assert_eq!(
                    order.len() as u64,
                    units.iter().map(|n| u64::from(*n)).sum::<u64>().div_ceil(8192).max(1),
                    "{units:?}"
                );
                assert_eq!((order.start(0), order.last(order.len() - 1)), (0, u64::MAX));
                for fragment in 1..order.len() {
                    assert_eq!(order.last(fragment - 1) + 1, order.start(fragment));
                }
            }
        }
    }

    #[test]
    fn unshuffled_fragments_are_of_equal_size() {
        let units = [5000u32, 0, 5000, 30_000, 1];
        let order = Order::new(None, &units, 8192);
        let mut counts = vec![0u64; order.len()];
        for (unit, count) in (0u32..).zip(&units) {
            for context in 0..*count {
                let key = key(None, Serial { unit, context });
                let fragment = (0..order.len()).find(|f| (order.start(*f)..=order.last(*f)).contains(&key));
                counts[fragment.unwrap_or_default()] += 1;
            }
        }
        assert_eq!(counts, [8192, 8192, 8192, 8192, 7233]);
    }

    /// Each position of a small set is taken by each context about equally often.
    #[test]
    fn the_shuffle_is_uniform() {
        const N: usize = 6;
        const SEEDS: u64 = 6000;
        let mut counts = [[0u32; N]; N];
        for seed in 0..SEEDS {
            let mut order: Vec<usize> = (0..N).collect();
            order.sort_by_key(|i| key(Some(seed), Serial { unit: (*i / 3) as u32, context: (*i % 3) as u32 }));
            order.iter().enumerate().for_each(|(place, context)| counts[place][*context] += 1);
        }
        let expected = SEEDS as f64 / N as f64;
        let chi: f64 = counts.iter().flatten().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        // 25 degrees of freedom; 52.6 is passed once in a thousand.
        assert!(chi < 52.6, "{chi}: {counts:?}");
    }
}

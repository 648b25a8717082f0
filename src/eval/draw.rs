//! Few-shot draws exactly as the harness makes them, so that every item gets the same examples in the same order.
//!
//! The harness is Python: `random.Random(1234)` advances through the items of a file; for each, `sample` draws as many indices as
//! there are shots, an index of the item itself is replaced by `choice`, and the examples stand in the order in which a Python
//! `set` yields them. So this file has the Mersenne Twister (MT19937, Matsumoto and Nishimura 1998), the three methods of `random`,
//! and the open addressing of CPython's sets of small integers (the same from 3.10 to 3.13; checked against those versions).

/// The seed of the harness.
pub const SEED: u32 = 1234;

/// One generator, advancing from item to item.
#[derive(Debug, Clone)]
pub struct Draws {
    random: Twister,
}

impl Default for Draws {
    fn default() -> Self {
        Self::new(SEED)
    }
}

impl Draws {
    /// A generator as `random.Random(seed)` has it.
    pub fn new(seed: u32) -> Self {
        Self { random: Twister::new(seed) }
    }

    /// Indices of the examples for item `item` of `items`, in the order of the prompt; fewer than `shots` where the file has no
    /// more. Call it once an item, in order.
    pub fn next(&mut self, items: usize, shots: usize, item: usize) -> Vec<usize> {
        if shots == 0 {
            return Vec::new();
        }
        let shots = shots.min(items.saturating_sub(1));
        let mut chosen = IntSet::default();
        self.random.sample(items, shots).into_iter().for_each(|i| chosen.add(i));
        if chosen.remove(item) && chosen.used < items - 1 {
            let mut other = self.random.below(items);
            while chosen.has(other) || other == item {
                other = self.random.below(items);
            }
            chosen.add(other);
        }
        chosen.into_order()
    }
}

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// MT19937.
#[derive(Debug, Clone)]
struct Twister {
    state: Vec<u32>,
    at: usize,
}

impl Twister {
    /// Python seeds with the array of the number's 32-bit words; here that is one word.
    fn new(seed: u32) -> Self {
        let mut state = vec![0u32; WORDS];
        state[0] = 19_650_218;
        for i in 1..WORDS {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let mut turn = |state: &mut Vec<u32>, factor: u32, add: u32| {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ before.wrapping_mul(factor)).wrapping_add(add);
            i += 1;
            if i == WORDS {
                state[0] = state[WORDS - 1];
                i = 1;
            }
            i as u32
        };
        for _ in 0..WORDS {
            turn(&mut state, 1_664_525, seed);
        }
        let mut next = 2;
        for _ in 1..WORDS {
            next = turn(&mut state, 1_566_083_941, 0u32.wrapping_sub(next));
        }
        state[0] = 0x8000_0000;
        Self { state, at: WORDS }
    }

    fn word(&mut self) -> u32 {
        if self.at == WORDS {
            self.refill();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        for i in 0..WORDS {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (y >> 1) ^ odd;
        }
        self.at = 0;
    }

    /// `randrange(n)`, also what `choice` draws: as many top bits as `n` has, again until they are below `n`.
    fn below(&mut self, n: usize) -> usize {
        let bits = (usize::BITS - n.leading_zeros()).clamp(1, 32);
        loop {
            let drawn = (self.word() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: from a shrinking pool where the pool is small, else by trying again.
    fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        // 21, or with more than five draws 21 + 4^ceil(log4(3k)): where a list takes less memory than a set.
        let mut pool_until = 21;
        if k > 5 {
            let mut power = 4;
            while power < 3 * k {
                power *= 4;
            }
            pool_until += power;
        }
        if n <= pool_until {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let drawn = pool[j];
                    pool[j] = pool[n - i - 1];
                    drawn
                })
                .collect();
        }
        let mut drawn: Vec<usize> = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if !drawn.contains(&j) {
                drawn.push(j);
            }
        }
        drawn
    }
}

/// Neighbouring places that are looked at before the next jump.
const PROBES: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Free,
    Removed,
    Key(usize),
}

/// A Python set of small non-negative integers (each is its own hash), for its order of iteration.
#[derive(Debug)]
struct IntSet {
    table: Vec<Place>,
    /// Places that are not free.
    filled: usize,
    used: usize,
}

impl Default for IntSet {
    fn default() -> Self {
        Self { table: vec![Place::Free; 8], filled: 0, used: 0 }
    }
}

impl IntSet {
    fn has(&self, key: usize) -> bool {
        self.table.contains(&Place::Key(key))
    }

    fn remove(&mut self, key: usize) -> bool {
        let Some(place) = self.table.iter_mut().find(|p| **p == Place::Key(key)) else { return false };
        *place = Place::Removed;
        self.used -= 1;
        true
    }

    fn add(&mut self, key: usize) {
        let (at, removed) = probe(&self.table, key);
        self.used += 1;
        if let Some(again) = removed {
            self.table[again] = Place::Key(key);
            return;
        }
        self.table[at] = Place::Key(key);
        self.filled += 1;
        if self.filled * 5 >= (self.table.len() - 1) * 3 {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let mut size = 8;
        while size <= self.used * 4 {
            size *= 2;
        }
        let former = std::mem::replace(&mut self.table, vec![Place::Free; size]);
        for place in former {
            if let Place::Key(key) = place {
                let (at, _) = probe(&self.table, key);
                self.table[at] = Place::Key(key);
            }
        }
        self.filled = self.used;
    }

    fn into_order(self) -> Vec<usize> {
        self.table
            .into_iter()
            .filter_map(|place| match place {
                Place::Key(key) => Some(key),
                Place::Free | Place::Removed => None,
            })
            .collect()
    }
}

/// The free place for a key that is not in the table, and a removed key's place on the way there.
fn probe(table: &[Place], key: usize) -> (usize, Option<usize>) {
    let mask = table.len() - 1;
    let (mut at, mut perturb, mut removed) = (key & mask, key, None);
    loop {
        let last = if at + PROBES <= mask { at + PROBES } else { at };
        for (place, held) in table.iter().enumerate().take(last + 1).skip(at) {
            match held {
                Place::Free => return (place, removed),
                Place::Removed => removed = Some(place),
                Place::Key(_) => {}
            }
        }
        perturb >>= 5;
        at = (at * 5 + 1 + perturb) & mask;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// `random.Random(1234)`: three values of `getrandbits(32)`.
    #[test]
    fn words_are_python_s() {
        let mut random = Twister::new(1234);
        assert_eq!([random.word(), random.word(), random.word()], [4_150_886_329, 3_342_196_574, 1_892_932_127]);
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        items: usize,
        shots: usize,
        draws: Vec<Vec<usize>>,
    }

    /// tests/golden/eval.py draws with Python itself.
    #[test]
    fn draws_are_python_s() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/eval/draws.json")).unwrap();
        assert!(golden.len() >= 6);
        for Golden { items, shots, draws } in golden {
            let mut ours = Draws::default();
            for (item, expected) in draws.iter().enumerate() {
                assert_eq!(ours.next(items, shots, item), *expected, "item {item} of {items}, {shots} shots");
            }
        }
    }

    #[test]
    fn an_item_is_never_its_own_example() {
        let mut draws = Draws::default();
        for item in 0..12 {
            let chosen = draws.next(12, 10, item);
            assert!(!chosen.contains(&item) && chosen.len() == 10);
        }
        // No other item is left, or none at all.
        assert_eq!(Draws::default().next(1, 10, 0), Vec::<usize>::new());
        assert_eq!(Draws::default().next(2, 10, 1).len(), 1);
    }
}

//! Which n-gram buckets a compressed model kept, and the row of each. Most look-ups of a prediction are these: several a character.

use super::matrix::Reader;
use anyhow::bail;

/// The buckets that have rows.
pub(super) enum Pruned {
    /// every bucket has the row of its number
    All,
    None,
    Some(Kept),
}

/// A bit for each bucket, and the rows of the kept buckets in the order of the buckets: the row of a bucket stands where as many bits
/// are set before its own. No look-up has a branch that depends on the bucket, as a hash table's has: the processor would
/// often guess it wrong. A quarter of a byte a bucket; pages without a kept bucket are never touched.
pub(super) struct Kept {
    blocks: Vec<Block>,
    rows: Vec<u32>,
}

/// The bits of 32 buckets, the lowest first; and how many bits are set in the blocks before, if one is set here.
type Block = [u32; 2];
const BLOCK: u32 = u32::BITS;

impl Pruned {
    /// Reads the list for a model of `buckets` buckets: `size` pairs of bucket and row; below 0 no list.
    pub(super) fn read(reader: &mut Reader<'_>, size: i64, buckets: u32) -> anyhow::Result<Self> {
        match size {
            ..0 => Ok(Self::All),
            0 => Ok(Self::None),
            _ => {
                let pairs = reader.range(size, 8, "the list of kept n-grams")?;
                let number = |cell: &[u8]| u32::from_le_bytes(cell.try_into().expect("4 bytes"));
                let mut kept: Vec<(u32, u32)> =
                    reader.bytes[pairs].chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect();
                if kept.iter().any(|(bucket, row)| *bucket >= buckets || *row > i32::MAX as u32) {
                    bail!("damaged: the list of kept n-grams names a bucket beyond {buckets} or a negative row");
                }
                kept.sort_by_key(|(bucket, _)| *bucket);
                if kept.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    bail!("damaged: the list of kept n-grams names a bucket twice");
                }
                Ok(Self::Some(Kept::new(&kept)))
            }
        }
    }

    /// How many rows the buckets of the model need, of `buckets` in all.
    pub(super) fn rows(&self, buckets: usize) -> usize {
        match self {
            Self::All => buckets,
            Self::None => 0,
            Self::Some(kept) => kept.rows.iter().max().map_or(0, |row| *row as usize + 1),
        }
    }

    /// Appends the rows of those buckets that have one, counted from `first`.
    pub(super) fn add(&self, buckets: impl Iterator<Item = u32>, first: u32, rows: &mut Vec<u32>) {
        match self {
            Self::All => rows.extend(buckets.map(|bucket| first + bucket)),
            Self::None => {}
            Self::Some(kept) => {
                let from = rows.len();
                for bucket in buckets {
                    let length = rows.len() + usize::from(kept.holds(bucket));
                    rows.push(bucket);
                    rows.truncate(length);
                }
                rows[from..].iter_mut().for_each(|bucket| *bucket = first + kept.row(*bucket));
            }
        }
    }
}

impl Kept {
    /// From pairs of bucket and row in the order of the buckets; at least one.
    fn new(pairs: &[(u32, u32)]) -> Self {
        let last = pairs.last().map_or(0, |(bucket, _)| *bucket);
        let mut blocks: Vec<Block> = vec![[0; 2]; (last / BLOCK + 1) as usize];
        for (before, (bucket, _)) in pairs.iter().enumerate() {
            let [bits, first] = &mut blocks[(bucket / BLOCK) as usize];
            if *bits == 0 {
                *first = before as u32;
            }
            *bits |= 1 << (bucket % BLOCK);
        }
        Self { blocks, rows: pairs.iter().map(|(_, row)| *row).collect() }
    }

    fn holds(&self, bucket: u32) -> bool {
        self.blocks.get((bucket / BLOCK) as usize).is_some_and(|[bits, _]| bits >> (bucket % BLOCK) & 1 == 1)
    }

    /// The row of a bucket that it holds.
    fn row(&self, bucket: u32) -> u32 {
        let [bits, before] = self.blocks[(bucket / BLOCK) as usize];
        let lower = (1 << (bucket % BLOCK)) - 1;
        self.rows[(before + (bits & lower).count_ones()) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_buckets_have_their_rows_and_others_none() {
        let pairs = [(0, 7), (31, 0), (32, 3), (64, 9), (70, 1), (1000, 4)];
        let pruned = Pruned::Some(Kept::new(&pairs));
        for bucket in 0..1100 {
            let mut rows = Vec::new();
            pruned.add([bucket].into_iter(), 0, &mut rows);
            let expected = pairs.iter().find(|pair| pair.0 == bucket).map(|pair| pair.1);
            assert_eq!(rows, Vec::from_iter(expected), "bucket {bucket}");
        }
        let mut rows = vec![5];
        pruned.add((0..80).rev(), 100, &mut rows);
        assert_eq!((rows, pruned.rows(2000)), (vec![5, 101, 109, 103, 100, 107], 10));
    }

    #[test]
    fn lists_that_do_not_fit_the_model_are_refused() {
        let read = |pairs: &[[i32; 2]], size: i64| {
            let bytes: Vec<u8> = pairs.as_flattened().iter().flat_map(|number| number.to_le_bytes()).collect();
            Pruned::read(&mut Reader::new(&bytes), size, 10).map(|pruned| pruned.rows(10)).map_err(|e| e.to_string())
        };
        assert_eq!(read(&[[9, 4], [0, 2]], 2), Ok(5));
        assert_eq!((read(&[], 0), read(&[], -1)), (Ok(0), Ok(10)));
        for pairs in [[10, 0], [-1, 0], [0, -1]] {
            assert!(read(&[pairs], 1).is_err_and(|error| error.contains("beyond 10")), "{pairs:?}");
        }
        assert!(read(&[[3, 0], [4, 1], [3, 2]], 3).is_err_and(|error| error.contains("twice")));
        assert!(read(&[[3, 0]], 2).is_err_and(|error| error.contains("cut off")));
        assert!(read(&[[3, 0]], i64::MAX).is_err_and(|error| error.contains("cut off")));
    }
}

//! fastText's matrices where they lie in the mapped file: dense rows of f32, or product-quantised codes.

use anyhow::{Context, bail};
use std::ops::Range;

/// Reads the file front to back. Every size is checked against what is left of the file before it is used.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` items of `size` bytes.
    pub(super) fn range(&mut self, count: i64, size: usize, what: &str) -> anyhow::Result<Range<usize>> {
        let left = self.bytes.len() - self.at;
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= left) else {
            bail!("cut off or damaged: {what} should hold {count} × {size} bytes and {left} bytes are left");
        };
        let start = self.at;
        self.at += bytes;
        Ok(start..self.at)
    }

    fn array<const N: usize>(&mut self, what: &str) -> anyhow::Result<[u8; N]> {
        let range = self.range(N as i64, 1, what)?;
        Ok(self.bytes[range].try_into().expect("a range of N bytes"))
    }

    pub(super) fn i32(&mut self, what: &str) -> anyhow::Result<i32> {
        Ok(i32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn i64(&mut self, what: &str) -> anyhow::Result<i64> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn f64(&mut self, what: &str) -> anyhow::Result<f64> {
        Ok(f64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn flag(&mut self, what: &str) -> anyhow::Result<bool> {
        match self.array::<1>(what)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => bail!("damaged: {what} is {other}, neither 0 nor 1"),
        }
    }

    /// Bytes up to the next NUL.
    pub(super) fn text(&mut self, what: &str) -> anyhow::Result<Range<usize>> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == 0).with_context(|| format!("cut off: {what} has no end"))?;
        let start = self.at;
        self.at += end + 1;
        Ok(start..start + end)
    }
}

/// A matrix in the file.
pub(super) enum Matrix {
    Dense { rows: usize, cols: usize, data: Range<usize> },
    Quantised(Quantised),
}

/// Product quantisation: a row is a sequence of codes, each naming one of 256 centroids for its slice of the row.
pub(super) struct Quantised {
    rows: usize,
    codes: Range<usize>,
    slices: Slices,
    /// code and 256 lengths: the row is scaled by its length
    norms: Option<(Range<usize>, Vec<f32>)>,
}

struct Slices {
    dim: usize,
    count: usize,
    width: usize,
    last: usize,
    centroids: Vec<f32>,
}

const CENTROIDS: usize = 256;

impl Matrix {
    pub(super) fn dense(reader: &mut Reader<'_>, what: &str) -> anyhow::Result<Self> {
        let (rows, cols) = (reader.i64(what)?, reader.i64(what)?);
        if rows < 0 || cols <= 0 {
            bail!("damaged: {what} has {rows} rows and {cols} columns");
        }
        let cells = rows.checked_mul(cols).unwrap_or(i64::MAX);
        let data = reader.range(cells, 4, what)?;
        Ok(Self::Dense { rows: rows as usize, cols: cols as usize, data })
    }

    pub(super) fn quantised(reader: &mut Reader<'_>, what: &str) -> anyhow::Result<Self> {
        let with_norms = reader.flag(what)?;
        let (rows, cols) = (reader.i64(what)?, reader.i64(what)?);
        let size = reader.i32(what)?;
        let codes = reader.range(size.into(), 1, what)?;
        let slices = Slices::read(reader, what)?;
        if rows < 0 || cols != slices.dim as i64 || Some(codes.len()) != (rows as usize).checked_mul(slices.count) {
            bail!("damaged: {what} has {rows} rows, {cols} columns and {} codes", codes.len());
        }
        let norms = match with_norms {
            false => None,
            true => {
                let codes = reader.range(rows, 1, what)?;
                let lengths = Slices::read(reader, what)?;
                if lengths.dim != 1 {
                    bail!("damaged: the lengths of {what} have {} dimensions", lengths.dim);
                }
                Some((codes, lengths.centroids))
            }
        };
        Ok(Self::Quantised(Quantised { rows: rows as usize, codes, slices, norms }))
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Dense { rows, .. } => *rows,
            Self::Quantised(matrix) => matrix.rows,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Dense { cols, .. } => *cols,
            Self::Quantised(matrix) => matrix.slices.dim,
        }
    }

    /// `sum += row`
    pub(super) fn add_row(&self, file: &[u8], row: usize, sum: &mut [f32]) {
        match self {
            Self::Dense { cols, data, .. } => {
                let cells = cells(&file[data.clone()], row, *cols);
                sum.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += f32::from_le_bytes(*cell));
            }
            Self::Quantised(matrix) => matrix.add_row(file, row, sum),
        }
    }

    /// `row · vector`
    pub(super) fn dot(&self, file: &[u8], row: usize, vector: &[f32]) -> f32 {
        match self {
            Self::Dense { cols, data, .. } => {
                let cells = cells(&file[data.clone()], row, *cols);
                vector.iter().zip(cells).map(|(value, cell)| value * f32::from_le_bytes(*cell)).sum()
            }
            Self::Quantised(matrix) => {
                let mut sum = 0.0;
                matrix.each(file, row, |at, centroid| {
                    sum += vector[at..at + centroid.len()].iter().zip(centroid).map(|(a, b)| a * b).sum::<f32>();
                });
                sum * matrix.norm(file, row)
            }
        }
    }
}

/// One dense row. The file's numbers need not be aligned, so they are read as bytes.
fn cells(data: &[u8], row: usize, cols: usize) -> &[[u8; 4]] {
    data[row * cols * 4..(row + 1) * cols * 4].as_chunks().0
}

impl Quantised {
    fn norm(&self, file: &[u8], row: usize) -> f32 {
        self.norms.as_ref().map_or(1.0, |(codes, lengths)| lengths[usize::from(file[codes.start + row])])
    }

    /// `sum += row`
    fn add_row(&self, file: &[u8], row: usize, sum: &mut [f32]) {
        let norm = self.norm(file, row);
        if self.slices.width == 2 && self.slices.last == 2 {
            // fastText's default, with lengths that the compiler knows
            let tables = self.slices.centroids.as_chunks::<2>().0.as_chunks::<CENTROIDS>().0;
            let slices = sum.as_chunks_mut::<2>().0.iter_mut().zip(tables).zip(self.codes(file, row));
            slices.for_each(|((sum, table), code)| {
                let [left, right] = table[usize::from(*code)];
                *sum = [sum[0] + norm * left, sum[1] + norm * right];
            });
        } else {
            self.each(file, row, |at, centroid| {
                sum[at..].iter_mut().zip(centroid).for_each(|(sum, value)| *sum += norm * value);
            });
        }
    }

    fn codes<'a>(&self, file: &'a [u8], row: usize) -> &'a [u8] {
        let count = self.slices.count;
        &file[self.codes.clone()][row * count..(row + 1) * count]
    }

    /// The centroids of a row with the columns where they begin.
    fn each(&self, file: &[u8], row: usize, mut visit: impl FnMut(usize, &[f32])) {
        let Slices { count, width, last, centroids, .. } = &self.slices;
        for (slice, code) in self.codes(file, row).iter().enumerate() {
            let (length, code) = (if slice + 1 == *count { *last } else { *width }, usize::from(*code));
            let start = slice * CENTROIDS * width + code * length;
            visit(slice * width, &centroids[start..start + length]);
        }
    }
}

impl Slices {
    fn read(reader: &mut Reader<'_>, what: &str) -> anyhow::Result<Self> {
        let [dim, count, width, last] =
            [reader.i32(what)?, reader.i32(what)?, reader.i32(what)?, reader.i32(what)?].map(i64::from);
        let fits = count > 0 && width > 0 && last > 0 && last <= width && (count - 1) * width + last == dim;
        if !fits {
            bail!("damaged: {what} cuts {dim} columns into {count} slices of {width} and {last}");
        }
        let range = reader.range(dim * CENTROIDS as i64, 4, what)?;
        let centroids = reader.bytes[range].as_chunks().0.iter().map(|cell| f32::from_le_bytes(*cell)).collect();
        Ok(Self { dim: dim as usize, count: count as usize, width: width as usize, last: last as usize, centroids })
    }
}

//! Lines of a plain, gzip or zstd file in blocks that never cross a fragment. Sequential, on a blocking thread, with memory
//! bounded by a block and the longest allowed line. Does not know JSON.

use crate::storage::reader::SourceFile;
use std::{
    io::{BufRead, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A block is handed on when it has this many bytes or rows.
const BLOCK_BYTES: usize = 1 << 20;
const BLOCK_ROWS: usize = 4096;
/// Bytes decompressed at a time.
const BUFFER: usize = 1 << 18;

/// Consecutive lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    data: Vec<u8>,
    /// End of every line in `data`; `None` in place of a line that was too long.
    ends: Vec<(usize, Option<u64>)>,
}

/// One line of a block.
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    /// Its bytes, too many to be read.
    TooLong(u64),
}

impl Lines {
    pub(super) fn iter(&self) -> impl Iterator<Item = Line<'_>> {
        let mut begin = 0;
        self.ends.iter().map(move |(end, too_long)| {
            let line = &self.data[begin..*end];
            begin = *end;
            too_long.map_or(Line::Whole(line), Line::TooLong)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn full(&self) -> bool {
        self.data.len() >= BLOCK_BYTES || self.ends.len() >= BLOCK_ROWS
    }
}

/// Opens a file and undoes its compression, known by its first bytes; the name does not count. The counter follows the bytes read.
pub(super) fn open(file: &SourceFile) -> std::io::Result<(Box<dyn BufRead + Send>, Arc<AtomicU64>)> {
    let read = Arc::new(AtomicU64::new(0));
    let mut raw = BufReader::with_capacity(BUFFER, Counted { inner: file.open()?, read: read.clone() });
    let head: Vec<u8> = raw.fill_buf()?.iter().take(4).copied().collect();
    let mut text: Box<dyn BufRead + Send> = match head.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(raw))),
        // A frame, or a frame to be skipped (as some tools put first).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::with_buffer(raw)?))
        }
        _ => Box::new(raw),
    };
    if text.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    Ok((text, read))
}

struct Counted {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Reads rows (lines that are not blank) one by one.
pub(super) struct RowReader {
    text: Box<dyn BufRead + Send>,
    max_line: u64,
}

impl RowReader {
    pub(super) fn new(text: Box<dyn BufRead + Send>, max_line: u64) -> Self {
        Self { text, max_line }
    }

    /// Appends the next row to `lines`; false at the end. On an error nothing is appended.
    pub(super) fn next(&mut self, lines: &mut Lines) -> std::io::Result<bool> {
        loop {
            let begin = lines.data.len();
            let result = self.line(&mut lines.data);
            let too_long = match result {
                Ok(None) => {
                    lines.data.truncate(begin);
                    return Ok(false);
                }
                Ok(Some(length)) => (length > self.max_line).then_some(length),
                Err(e) => {
                    lines.data.truncate(begin);
                    return Err(e);
                }
            };
            if too_long.is_some() {
                lines.data.truncate(begin);
            } else {
                let kept = lines.data[begin..].trim_ascii_end().len();
                lines.data.truncate(begin + kept);
                if lines.data[begin..].trim_ascii_start().is_empty() {
                    lines.data.truncate(begin);
                    continue;
                }
            }
            lines.ends.push((lines.data.len(), too_long));
            return Ok(true);
        }
    }

    /// The length of the next line, of which no more than `max_line` bytes are kept; None at the end.
    fn line(&mut self, data: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
        let mut length = (&mut self.text).take(self.max_line + 1).read_until(b'\n', data)? as u64;
        if length == 0 {
            return Ok(None);
        }
        if length <= self.max_line || data.last() == Some(&b'\n') {
            return Ok(Some(length.min(self.max_line)));
        }
        loop {
            let buffer = self.text.fill_buf()?;
            if buffer.is_empty() {
                return Ok(Some(length));
            }
            let end = buffer.iter().position(|b| *b == b'\n');
            let n = end.map_or(buffer.len(), |at| at + 1);
            self.text.consume(n);
            length += n as u64;
            if end.is_some() {
                return Ok(Some(length));
            }
        }
    }
}

/// Consecutive rows of a fragment on their way to the table.
#[derive(Debug, Default)]
pub(super) struct Block<T = Lines> {
    pub(super) fragment: u64,
    /// Number of its first row in the file.
    pub(super) first_row: u64,
    pub(super) rows: T,
    /// The fragment ends here.
    pub(super) closes: bool,
    /// The file ends here.
    pub(super) last: bool,
    /// Why reading ended early.
    pub(super) damage: Option<String>,
}

impl<T> Block<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Block<U> {
        let Self { fragment, first_row, rows, closes, last, damage } = self;
        Block { fragment, first_row, rows: change(rows), closes, last, damage }
    }
}

/// Cuts a file into blocks and sends them, until `send` says stop. Rows of fragments that are `done` are counted and passed over.
/// A block is sent when the row after it is known to exist, so that the last one can say that it is.
pub(super) fn blocks(
    mut rows: RowReader,
    fragment_rows: u64,
    done: impl Fn(u64) -> bool,
    mut send: impl FnMut(Block) -> bool,
) {
    let mut current: Option<Block> = None;
    let mut row = 0;
    loop {
        let fragment = row / fragment_rows;
        let fits = current.as_ref().is_some_and(|b| b.fragment == fragment && !b.rows.full());
        let mut fresh = Block { fragment, first_row: row, ..Block::default() };
        let target = if fits { current.as_mut() } else { None };
        let read = rows.next(&mut target.unwrap_or(&mut fresh).rows);
        if !matches!(read, Ok(true)) {
            let nothing = current.is_none() && row > 0 && read.is_ok();
            let end = Block {
                closes: true,
                last: true,
                damage: read.err().map(|e| e.to_string()),
                ..current.unwrap_or(fresh)
            };
            if !nothing {
                send(end);
            }
            return;
        }
        row += 1;
        if fits {
            continue;
        }
        let next = (!done(fragment)).then_some(fresh);
        if let Some(full) = std::mem::replace(&mut current, next)
            && !send(Block { closes: full.fragment != fragment, ..full })
        {
            return;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn cut(text: &'static str, fragment_rows: u64, done: &[u64]) -> Vec<(u64, u64, Vec<String>, bool, bool)> {
        let mut out = Vec::new();
        blocks(
            RowReader::new(Box::new(text.as_bytes()), 10),
            fragment_rows,
            |f| done.contains(&f),
            |b| {
                let show = |l: Line<'_>| match l {
                    Line::Whole(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                    Line::TooLong(n) => format!("<{n}>"),
                };
                assert!(b.damage.is_none());
                out.push((b.fragment, b.first_row, b.rows.iter().map(show).collect(), b.closes, b.last));
                true
            },
        );
        out
    }

    fn block(
        fragment: u64,
        first_row: u64,
        lines: &[&str],
        closes: bool,
        last: bool,
    ) -> (u64, u64, Vec<String>, bool, bool) {
        (fragment, first_row, lines.iter().map(|l| (*l).to_owned()).collect(), closes, last)
    }

    #[test]
    fn fragments_end_at_their_rows() {
        assert_eq!(cut("", 2, &[]), [block(0, 0, &[], true, true)]);
        assert_eq!(cut("\n \r\n", 2, &[]), [block(0, 0, &[], true, true)]);
        assert_eq!(cut("a\r\n\nb\n", 2, &[]), [block(0, 0, &["a", "b"], true, true)]);
        assert_eq!(cut("a\nb\nc", 2, &[]), [block(0, 0, &["a", "b"], true, false), block(1, 2, &["c"], true, true)]);
    }

    #[test]
    fn done_fragments_are_passed_over() {
        assert_eq!(
            cut("a\nb\nc\nd\ne", 2, &[0]),
            [block(1, 2, &["c", "d"], true, false), block(2, 4, &["e"], true, true)]
        );
        assert_eq!(
            cut("a\nb\nc\nd\ne", 2, &[1]),
            [block(0, 0, &["a", "b"], true, false), block(2, 4, &["e"], true, true)]
        );
        assert_eq!(cut("a\nb\nc", 2, &[0, 1]), []);
    }

    #[test]
    fn long_lines_are_not_kept() {
        assert_eq!(cut("a\n012345678901\nb\n", 9, &[]), [block(0, 0, &["a", "<13>", "b"], true, true)]);
        assert_eq!(cut("0123456789\n0123456789", 9, &[]), [block(0, 0, &["0123456789", "0123456789"], true, true)]);
        assert_eq!(cut("01234567890", 9, &[]), [block(0, 0, &["<11>"], true, true)]);
    }
}

//! Documents to contexts of a fixed number of tokens, by the rules of DCLM's tokshuf (reference/repro.md section 6): the tokens of each document
//! and an end token, one document after the other, cut into blocks without overlap; the last block of a unit is filled up on its right.
//! Documents cross blocks; nothing masks them from each other. Pure: knows nothing of tables, files or the order of contexts.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// File beside the contexts that holds their tokenizer, as in a model directory without the underscore.
pub const TOKENIZER_FILE: &str = "_tokenizer.json";
/// The same for `tokenizer_config.json`; not every tokenizer has one.
pub const TOKENIZER_CONFIG_FILE: &str = "_tokenizer_config.json";

/// What the manifest of a `packed` table says of it, as entries of its `params`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// blake3 of [`TOKENIZER_FILE`] in hexadecimal: a model with another `tokenizer.json` cannot use the contexts.
    pub tokenizer_hash: String,
    /// Rows that a model's embedding needs: the highest id that can occur plus one.
    pub vocab_size: usize,
    /// Tokens of a context.
    pub context: usize,
    /// Id that ends each document.
    pub eot: u32,
    /// Id that fills the last context of a unit.
    pub pad: u32,
    /// Documents packed, those without a token included.
    pub documents: u64,
    /// Documents whose text is NULL; they are not in the contexts.
    pub without_text: u64,
    /// Tokens without padding, end tokens included.
    pub tokens: u64,
    /// Padding.
    pub padding: u64,
    /// Contexts: rows of the table.
    pub contexts: u64,
    /// Units, each of which begins a context.
    pub units: u64,
    /// Whether the contexts are shuffled.
    pub shuffled: bool,
    /// What the shuffle started from.
    pub shuffle_seed: u64,
}

/// Shape of the contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of a context. A model trains on one less: each token but the last has a next one.
    pub context: usize,
    /// Id that ends a document.
    pub eot: u32,
    /// Id that fills the last context of a unit.
    pub pad: u32,
}

/// Part of a document in a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The document.
    pub id: Arc<str>,
    /// First token of the document that is here, counted in the document.
    pub start: u64,
    /// Where it stands in the context.
    pub offset: u32,
    /// Tokens of the document that are here, the end token counted.
    pub length: u32,
}

/// Collects documents of one unit and hands out contexts as they fill.
#[derive(Debug)]
pub struct Packer {
    shape: Shape,
    tokens: Vec<u32>,
    spans: Vec<Span>,
}

impl Packer {
    /// An empty unit.
    pub fn new(shape: Shape) -> Self {
        Self { shape, tokens: Vec::with_capacity(shape.context), spans: Vec::new() }
    }

    /// Appends a document and its end token. `emit` gets each full context: its tokens, how many of them are not padding, its spans.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn push<E>(
        &mut self,
        id: &str,
        tokens: &[u32],
        mut emit: impl FnMut(&[u32], u32, &[Span]) -> Result<(), E>,
    ) -> Result<(), E> {
        let id: Arc<str> = id.into();
        let whole = tokens.len() + 1;
        let mut start = 0;
        while start < whole {
            let offset = self.tokens.len();
            let length = (whole - start).min(self.shape.context - offset);
            let here = &tokens[start.min(tokens.len())..(start + length).min(tokens.len())];
            self.tokens.extend_from_slice(here);
            if here.len() < length {
                self.tokens.push(self.shape.eot);
            }
            self.spans.push(Span {
                id: Arc::clone(&id),
                start: start as u64,
                offset: offset as u32,
                length: length as u32,
            });
            start += length;
            if self.tokens.len() == self.shape.context {
                self.flush(&mut emit)?;
            }
        }
        Ok(())
    }

    /// Ends the unit: what is left goes out, filled up. The next document begins a new unit.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn finish<E>(&mut self, mut emit: impl FnMut(&[u32], u32, &[Span]) -> Result<(), E>) -> Result<(), E> {
        if self.tokens.is_empty() { Ok(()) } else { self.flush(&mut emit) }
    }

    fn flush<E>(&mut self, emit: &mut impl FnMut(&[u32], u32, &[Span]) -> Result<(), E>) -> Result<(), E> {
        let length = self.tokens.len() as u32;
        self.tokens.resize(self.shape.context, self.shape.pad);
        let emitted = emit(&self.tokens, length, &self.spans);
        self.tokens.clear();
        self.spans.clear();
        emitted
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    type Context = (Vec<u32>, u32, Vec<(String, u64, u32, u32)>);

    fn pack(context: usize, documents: &[(&str, Vec<u32>)]) -> Vec<Context> {
        let mut packer = Packer::new(Shape { context, eot: 0, pad: 9 });
        let mut contexts = Vec::new();
        let mut emit = |tokens: &[u32], length: u32, spans: &[Span]| {
            let spans = spans.iter().map(|s| (s.id.to_string(), s.start, s.offset, s.length)).collect();
            contexts.push((tokens.to_vec(), length, spans));
            Ok::<_, Infallible>(())
        };
        for (id, tokens) in documents {
            packer.push(id, tokens, &mut emit).unwrap();
        }
        packer.finish(&mut emit).unwrap();
        contexts
    }

    fn span(id: &str, start: u64, offset: u32, length: u32) -> (String, u64, u32, u32) {
        (id.to_owned(), start, offset, length)
    }

    #[test]
    fn contexts_by_hand() {
        let found = pack(4, &[("a", vec![1, 2]), ("b", vec![]), ("c", vec![3, 4, 5, 6, 7])]);
        assert_eq!(
            found,
            [
                (vec![1, 2, 0, 0], 4, vec![span("a", 0, 0, 3), span("b", 0, 3, 1)]),
                (vec![3, 4, 5, 6], 4, vec![span("c", 0, 0, 4)]),
                (vec![7, 0, 9, 9], 2, vec![span("c", 4, 0, 2)]),
            ]
        );
        assert_eq!(pack(4, &[]), []);
        assert_eq!(pack(2, &[("a", vec![1])]), [(vec![1, 0], 2, vec![span("a", 0, 0, 2)])]);
    }

    proptest! {
        /// The contexts are the stream cut in blocks, and the spans cover it.
        #[test]
        fn contexts_are_the_stream(context in 1usize..9, lengths in prop::collection::vec(0usize..20, 0..12)) {
            let documents: Vec<(String, Vec<u32>)> =
                lengths.iter().enumerate().map(|(i, n)| (format!("d{i}"), (0..*n as u32).map(|t| 10 + t).collect())).collect();
            let borrowed: Vec<(&str, Vec<u32>)> = documents.iter().map(|(id, t)| (id.as_str(), t.clone())).collect();
            let mut stream: Vec<u32> = documents.iter().flat_map(|(_, t)| t.iter().copied().chain([0])).collect();
            let real = stream.len();
            stream.resize(real.next_multiple_of(context), 9);
            let found = pack(context, &borrowed);
            let tokens: Vec<u32> = found.iter().flat_map(|(tokens, ..)| tokens.clone()).collect();
            prop_assert_eq!(tokens, stream);
            prop_assert_eq!(found.iter().map(|c| c.1 as usize).sum::<usize>(), real);
            for (tokens, length, spans) in &found {
                let mut at = 0;
                for (id, start, offset, length) in spans {
                    prop_assert_eq!(*offset, at);
                    let whole: Vec<u32> = documents.iter().find(|(d, _)| d == id).map(|(_, t)| t.iter().copied().chain([0]).collect()).unwrap();
                    let (from, to) = (*start as usize, (*start + u64::from(*length)) as usize);
                    prop_assert_eq!(&tokens[at as usize..(at + length) as usize], &whole[from..to]);
                    at += length;
                }
                prop_assert_eq!(at, *length);
            }
        }
    }
}

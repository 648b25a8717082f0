//! Rephrasing by edits ([`crate::text::edits`]) as a policy: of a completion only the letters behind the marks are drawn, between two
//! tokens, and all else is given. Knows tokens; how a text is cut into segments is not its business.
//!
//! The first given part belongs to the prompt, so that it is computed once for all completions, and a completion begins with its first
//! choice and ends with its last. Log-probabilities are taken among the two tokens, with the lean that `rephrase()` adds: the policy is
//! then exactly what is drawn from.

use crate::engine::{FormatStep, format_tokens};
use std::sync::Arc;

/// What each choice is between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Between {
    /// Keeps a segment, drops it.
    pub ids: [u32; 2],
    /// Added to the logit of the second, before the temperature.
    pub lean: f32,
}

/// The form of a document's completions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Choices and what is given between them; begins with a choice.
    pub steps: Arc<[FormatStep]>,
    /// Where the choices stand among the tokens of a completion.
    pub places: Arc<[usize]>,
}

impl Script {
    /// From a format that may begin with given tokens: those, and the rest.
    pub fn split(format: &[FormatStep]) -> (Vec<u32>, Self) {
        let given = format.iter().take_while(|step| matches!(step, FormatStep::Forced(_))).count();
        let (given, steps) = format.split_at(given);
        let given =
            given.iter().flat_map(|step| if let FormatStep::Forced(ids) = step { ids.to_vec() } else { Vec::new() });
        let mut places = Vec::new();
        let mut at = 0;
        for step in steps {
            match step {
                FormatStep::Forced(ids) => at += ids.len(),
                _ => {
                    places.push(at);
                    at += 1;
                }
            }
        }
        (given.collect(), Self { steps: steps.into(), places: places.into() })
    }

    /// Tokens of a completion.
    pub fn len(&self) -> usize {
        format_tokens(&self.steps)
    }

    /// Whether nothing is to be chosen.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Per segment of the document, whether a completion keeps it.
    pub fn kept(&self, tokens: &[u32], between: Between) -> Vec<bool> {
        self.places.iter().map(|&at| tokens.get(at) != Some(&between.ids[1])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_first_belongs_to_the_prompt() {
        let choice = FormatStep::OneOf([7, 8].into());
        let given = |ids: &[u32]| FormatStep::Forced(ids.into());
        let format = [given(&[1, 2]), given(&[3]), choice.clone(), given(&[4, 5]), choice.clone(), choice.clone()];
        let (prompt, script) = Script::split(&format);
        assert_eq!(prompt, [1, 2, 3]);
        assert_eq!((&script.places[..], script.len(), script.is_empty()), (&[0, 3, 4][..], 5, false));
        let between = Between { ids: [7, 8], lean: 0.0 };
        assert_eq!(script.kept(&[7, 4, 5, 8, 7], between), [true, false, true]);
        let (prompt, script) = Script::split(&[given(&[1])]);
        assert_eq!((prompt, script.is_empty()), (vec![1], true));
    }
}

//! Group relative policy optimisation of a rephraser (arXiv 2402.03300, as reference/repro.md section 3.4 says the paper ran it):
//! prompts to completions from the engine, rewards, advantages, update, new weights into the engine.
//!
//! | file | owns |
//! |---|---|
//! | [`edits`] | completions of which only the choices are drawn |
//! | `found` | an iteration's figures on the host |
//! | [`loss`] | objective, mask, normaliser, sign, gradient |
//! | [`advantage`] | rewards to advantages |
//! | [`batch`] | completions to forward passes; order of prompts; seeds |
//! | [`policy`] | the model under training, one update |
//! | `room` | the policy's engine, and what an update needs beside it |
//! | [`rollout`] | completions from the engine, scored |
//! | [`run`] | the loop: steps, evaluation, checkpoints, when to stop |
//! | `staged` | passes as tensors on the device |
//! | [`table`] | rollouts and metrics as record batches |
//!
//! Departures from TRL: a completion whose reward failed takes no part in its group (TRL counts the missing part as 0); prompts
//! that are too long are left out before the run (TRL cuts them for the loss only); a prompt's rows are computed once for all
//! its completions, which changes no number. A rephraser by edits has no counterpart there: only its choices are drawn ([`edits`]).

pub mod advantage;
pub mod batch;
pub mod edits;
mod found;
pub mod loss;
pub mod policy;
pub mod rollout;
mod room;
pub mod run;
mod staged;
pub mod table;

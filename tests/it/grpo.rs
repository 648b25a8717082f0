//! GRPO: the update against TRL, the loop with rewards of all kinds of faults, the stage with its tables, and kill -9.

mod kill;
mod looping;
mod stage;
mod trl;

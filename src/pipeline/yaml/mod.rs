//! YAML as a tree that remembers where every value stands, and decoding of parts of it into serde types with all errors
//! at once. Knows nothing of what a pipeline holds.

pub mod decode;
pub mod each;
pub mod node;
pub mod problem;
pub mod set;

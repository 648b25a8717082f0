//! The rephrased text inside a model's answer.

/// Strips a think block, takes what follows the last marker after it, strips white space and a leading or trailing `---`.
/// None when the marker is missing.
pub fn extract<'a>(answer: &'a str, marker: &str) -> Option<&'a str> {
    let _ = (answer, marker);
    todo!()
}

//! fastText classifiers with DCLM's scoring rule (reference section 5).

use std::path::Path;

/// A loaded classifier; prediction is thread-safe.
pub struct FastText {
    _p: (),
}

impl FastText {
    /// Loads `.bin` or `.ftz`; refuses other files before touching memory.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let _ = path;
        todo!()
    }
    /// Probability of `label` (with or without `__label__`); without a label DCLM's rule: p of the top label, or 1 − p when it is `__label__cc`.
    pub fn score(&self, text: &str, label: Option<&str>) -> anyhow::Result<f32> {
        let _ = (text, label);
        todo!()
    }
    /// The most probable label, without `__label__`.
    pub fn label(&self, text: &str) -> anyhow::Result<Option<String>> {
        let _ = text;
        todo!()
    }
    pub fn labels(&self) -> Vec<String> {
        todo!()
    }
}

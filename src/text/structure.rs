//! Line structure of a text: paragraphs, lists, headings, code, tables, JSON; and whether a rephrasing kept it (model-free).

/// Model-free `structure_preserved` (the paper asks a model; reference section 2.3).
pub fn preserved(original: &str, rephrased: &str) -> bool {
    let _ = (original, rephrased);
    todo!()
}

//! Length in characters (Unicode scalar values), as the paper measures it (reference section 2.4).

/// `chars(rephrased) / chars(original)`; NaN never: an empty original gives None.
pub fn length_ratio(original: &str, rephrased: &str) -> Option<f64> {
    let base = original.chars().count();
    (base > 0).then(|| rephrased.chars().count() as f64 / base as f64)
}

#[cfg(test)]
mod tests {
    use super::length_ratio;

    #[test]
    fn counts_characters_not_bytes() {
        assert_eq!(length_ratio("abcd", "ab"), Some(0.5));
        assert_eq!(length_ratio("äöü", "日本語日本語"), Some(2.0));
        assert_eq!(length_ratio("abc", ""), Some(0.0));
    }

    #[test]
    fn an_empty_original_has_no_ratio() {
        assert_eq!(length_ratio("", "abc"), None);
        assert_eq!(length_ratio("", ""), None);
    }
}

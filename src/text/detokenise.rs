//! Running text from WikiText's tokenised lines: `@-@` marks, spaced punctuation, `= Heading =` lines. Knows only that format.

/// Joins what the tokeniser cut. Headings lose their signs; lines stay lines. `<unk>` stays as it is.
pub fn detokenise(text: &str) -> String {
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn line(text: &str) -> String {
    let text = heading(text.trim());
    let mut out = String::with_capacity(text.len());
    let mut glue = false;
    let mut open_quote = false;
    for token in text.split_whitespace() {
        let mut glue_next = false;
        let mut glue_here = glue;
        let shown = match token {
            "@-@" | "@,@" | "@.@" => {
                (glue_here, glue_next) = (true, true);
                &token[1..2]
            }
            "(" | "[" | "£" | "$" | "#" | "“" => {
                glue_next = true;
                token
            }
            "\"" => {
                (glue_here, glue_next) = if open_quote { (true, false) } else { (glue, true) };
                open_quote = !open_quote;
                token
            }
            "/" => {
                (glue_here, glue_next) = (true, true);
                token
            }
            _ if closes(token) => {
                glue_here = true;
                token
            }
            _ => token,
        };
        if !out.is_empty() && !glue_here {
            out.push(' ');
        }
        out.push_str(shown);
        glue = glue_next;
    }
    out
}

/// Tokens that belong to the word before them.
fn closes(token: &str) -> bool {
    matches!(
        token,
        "." | ","
            | ";"
            | ":"
            | "!"
            | "?"
            | ")"
            | "]"
            | "%"
            | "..."
            | "”"
            | "°"
            | "'"
            | "n't"
            | "'ll"
            | "'re"
            | "'ve"
            | "'d"
            | "'m"
    ) || token
        .strip_prefix('\'')
        .is_some_and(|rest| rest.starts_with('s') && rest.chars().nth(1).is_none_or(|c| !c.is_alphabetic()))
}

/// `= = Early life = =` → `Early life`.
fn heading(text: &str) -> &str {
    let inner = text.trim_start_matches(['=', ' ']).trim_end_matches(['=', ' ']);
    if text.starts_with("= ") && text.ends_with(" =") && !inner.is_empty() { inner } else { text }
}

#[cfg(test)]
mod tests {
    use super::detokenise;

    /// Each pair was written by hand from lines of the corpus.
    #[test]
    fn by_hand() {
        for (raw, want) in [
            (" = Robert <unk> = ", "Robert <unk>"),
            (" = = Early life = = ", "Early life"),
            (" a guest @-@ starring role , in 2000 . ", "a guest-starring role, in 2000."),
            (" 1 @,@ 500 people and 3 @.@ 5 % of them", "1,500 people and 3.5% of them"),
            (" Teddy 's Story and the girls ' school", "Teddy's Story and the girls' school"),
            (
                " as \" Craig \" in the episode \" Teddy 's Story \" of",
                "as \"Craig\" in the episode \"Teddy's Story\" of",
            ),
            (" the town ( pop . 5 ) ; it did n't grow : why ?", "the town (pop. 5); it didn't grow: why?"),
            (" $ 5 million ; and / or", "$5 million; and/or"),
            (" x = 5 is no heading", "x = 5 is no heading"),
            ("", ""),
            (" one \n \n two . \n", "one\n\ntwo."),
        ] {
            assert_eq!(detokenise(raw), want, "{raw:?}");
        }
    }
}

//! The words of a rule as iptables-save writes them and iptables-restore reads them.

use std::borrow::Cow;

/// Splits a rule into its words. Quotes are taken off and what they escape is restored,
/// by the rules of iptables-restore (iptables `iptables/xshared.c`, `add_param_to_argv`).
pub(crate) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.rest.trim_start_matches([' ', '\t']);
        if text.is_empty() {
            self.rest = text;
            return None;
        }
        let plain_end = text.find([' ', '\t', '"']).unwrap_or(text.len());
        if !text[plain_end..].starts_with('"') {
            self.rest = &text[plain_end..];
            return Some(Cow::Borrowed(&text[..plain_end]));
        }
        let (word, rest) = unquote(text);
        self.rest = rest;
        Some(Cow::Owned(word))
    }
}

/// The first word of a text in which quotes occur, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut quoted = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => {
                if let Some((_, escaped)) = chars.next() {
                    word.push(escaped);
                }
            }
            ' ' | '\t' if !quoted => return (word, &text[at..]),
            c => word.push(c),
        }
    }
    (word, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        Words::of(text).map(Cow::into_owned).collect()
    }

    #[test]
    fn quotes_hold_a_word_together() {
        assert_eq!(
            words(r#"-m comment  --comment "default/web:http x" -j A"#),
            [
                "-m",
                "comment",
                "--comment",
                "default/web:http x",
                "-j",
                "A"
            ]
        );
    }

    #[test]
    fn escapes_count_within_quotes_only() {
        assert_eq!(words(r#""a\"b\\c" d\e ''"#), [r#"a"b\c"#, r"d\e", "''"]);
    }

    #[test]
    fn an_empty_quoted_word_is_a_word() {
        assert_eq!(words(r#"--comment "" -j X"#), ["--comment", "", "-j", "X"]);
    }

    #[test]
    fn unfinished_quotes_end_with_the_text() {
        assert_eq!(words("a \"b c\\"), ["a", "b c"]);
    }
}

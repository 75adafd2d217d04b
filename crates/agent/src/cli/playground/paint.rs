//! Colours, where somebody sees them and wants them.

use std::io::IsTerminal;

/// Puts colours around words, or leaves them as they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    wanted: bool,
}

impl Paint {
    /// For standard output: colours on a terminal that has them, unless `NO_COLOR` is set
    /// (<https://no-color.org>).
    pub(super) fn for_stdout() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
        Self {
            wanted: std::io::stdout().is_terminal() && !dumb && !is_set("NO_COLOR"),
        }
    }

    pub(super) fn good(self, words: &str) -> String {
        self.around(words, "32")
    }

    pub(super) fn bad(self, words: &str) -> String {
        self.around(words, "1;31")
    }

    pub(super) fn strong(self, words: &str) -> String {
        self.around(words, "1")
    }

    /// What explains the rest.
    pub(super) fn quiet(self, words: &str) -> String {
        self.around(words, "2")
    }

    fn around(self, words: &str, code: &str) -> String {
        if self.wanted {
            format!("\x1b[{code}m{words}\x1b[0m")
        } else {
            words.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_left_as_they_are_where_no_colours_are_wanted() {
        assert_eq!(Paint { wanted: false }.bad("NO"), "NO");
        assert_eq!(Paint { wanted: true }.bad("NO"), "\x1b[1;31mNO\x1b[0m");
    }
}

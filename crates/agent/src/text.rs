//! Text for an 80-column terminal: labelled, wrapped paragraphs and readable numbers. Pure.

/// Columns that a line may take.
const WIDTH: usize = 80;

/// Lines with a label each, whose text is wrapped beside it.
#[derive(Debug)]
pub(crate) struct Paragraph {
    text: String,
    indent: usize,
}

impl Paragraph {
    /// Nothing yet; texts stand `indent` columns from the left.
    pub(crate) fn new(indent: usize) -> Self {
        Self {
            text: String::new(),
            indent,
        }
    }

    /// Adds `label` and beside it `text`, wrapped between words; a line break in it stays.
    pub(crate) fn line(&mut self, label: &str, text: &str) {
        let mut label = label;
        for part in text.split('\n') {
            for line in wrap(part, WIDTH.saturating_sub(self.indent)) {
                let padded = format!("{label:<indent$}", indent = self.indent);
                // A label that fills its column is kept apart from the text.
                let gap = if padded.ends_with(' ') || padded.is_empty() {
                    ""
                } else {
                    " "
                };
                let whole = format!("{padded}{gap}{line}");
                self.text.push_str(whole.trim_end());
                self.text.push('\n');
                label = "";
            }
        }
    }

    /// Adds a text from the left margin, wrapped.
    pub(crate) fn plain(&mut self, text: &str) {
        for line in wrap(text, WIDTH) {
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// Adds a text in the column of texts as it is, for what is to be copied or searched for.
    pub(crate) fn verbatim(&mut self, text: &str) {
        self.text.push_str(&" ".repeat(self.indent));
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// The whole.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Breaks between words, so that no line is longer than `width` unless a word is. Spaces at
/// the beginning stay, before the lines that follow too.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let margin = &text[..text.len() - text.trim_start().len()];
    let mut lines = Vec::new();
    let mut line = margin.to_owned();
    for word in text.split_whitespace() {
        let is_first = line.len() == margin.len();
        if !is_first && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, margin.to_owned()));
        } else if !is_first {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// A number with its thousands apart: `1,048,576`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many of something: `1 peer`, `1,024 peers`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    let what = if number == 1 { one } else { many };
    format!("{} {what}", grouped(number))
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes.div_ceil(1024 * 1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_wrapped_beside_their_label() {
        let mut page = Paragraph::new(8);
        page.line("label", &"word ".repeat(20));
        let text = page.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("label   word word"), "{text}");
        assert!(lines[1].starts_with("        word"), "{text}");
        assert!(lines.iter().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn a_label_as_wide_as_its_column_does_not_touch_the_text() {
        let mut page = Paragraph::new(4);
        page.line("four", "text");
        page.line("", "");
        assert_eq!(page.finish(), "four text\n\n");
    }

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_048_576, "1,048,576"),
        ] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(mebibytes(1), "1 MiB");
        assert_eq!(mebibytes(20 * 1024 * 1024), "20 MiB");
    }
}

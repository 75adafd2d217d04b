//! Cutting a text into its documents before any of it is parsed, so that a
//! mistake in one does not hide the rest.
//!
//! This needs no parsing: a line that begins with `---` or `...` and then ends
//! or goes on with white space is a marker wherever it stands, also within
//! quotes, brackets and block scalars (YAML 1.2.2, production `c-forbidden`).

/// One document's text and the line it begins on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    pub(crate) text: &'a str,
    /// Counted from 0.
    pub(crate) first_line: usize,
}

/// The chunks of a text, those of nothing but white space and comments left
/// out.
#[derive(Debug, Clone)]
pub(crate) struct Chunks<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Chunks<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            rest: text.strip_prefix('\u{feff}').unwrap_or(text),
            line: 0,
        }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        while !self.rest.is_empty() {
            let (chunk, lines, has_content) = first_document(self.rest);
            let first_line = self.line;
            let text = &self.rest[..chunk];
            self.rest = &self.rest[chunk..];
            self.line += lines;
            if has_content {
                return Some(Chunk { text, first_line });
            }
        }
        None
    }
}

/// The length of the first document in bytes and in line breaks, and whether
/// it says anything.
fn first_document(text: &str) -> (usize, usize, bool) {
    let mut end = 0;
    let mut lines = 0;
    let mut marked = false;
    let mut has_content = false;
    while end < text.len() {
        let length = line_length(&text.as_bytes()[end..]);
        let line = &text[end..end + length];
        if is_marker(line, "---") {
            if marked || has_content {
                break;
            }
            marked = true;
            has_content |= says_something(&line[3..]);
        } else if is_marker(line, "...") {
            // What follows it on its line is for the parser to refuse.
            has_content |= says_something(&line[3..]);
            return (end + length, lines + 1, has_content);
        } else if marked || !line.starts_with('%') {
            // Before the marker, a line with '%' is a directive for it.
            has_content |= says_something(line);
        }
        end += length;
        lines += 1;
    }
    (end, lines, has_content)
}

/// The length of the first line with its break: LF, CR LF or CR.
fn line_length(bytes: &[u8]) -> usize {
    match bytes.iter().position(|&b| b == b'\n' || b == b'\r') {
        Some(at) if bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n') => at + 2,
        Some(at) => at + 1,
        None => bytes.len(),
    }
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
}

fn says_something(line: &str) -> bool {
    let line = line.trim_start_matches([' ', '\t', '\n', '\r']);
    !line.is_empty() && !line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> Vec<(&str, usize)> {
        Chunks::new(text).map(|c| (c.text, c.first_line)).collect()
    }

    #[test]
    fn a_text_is_cut_at_its_markers() {
        assert_eq!(
            chunks("a\n---\nb\n--- c\n"),
            [("a\n", 0), ("---\nb\n", 1), ("--- c\n", 3)]
        );
    }

    #[test]
    fn what_only_resembles_a_marker_is_content() {
        let text = "a: |\n ---\n----\n---b\n";
        assert_eq!(chunks(text), [(text, 0)]);
    }

    #[test]
    fn documents_without_content_are_left_out_but_their_lines_count() {
        assert_eq!(
            chunks("# head\n---\n# nothing\n---\n\n---\nb\n---\n"),
            [("---\nb\n", 5)]
        );
        assert_eq!(chunks(""), []);
        assert_eq!(chunks("---"), []);
    }

    #[test]
    fn directives_and_comments_go_with_the_marker_after_them() {
        assert_eq!(
            chunks("%YAML 1.2\n---\na\n...\n# x\n%TAG ! !\n---\nb"),
            [
                ("%YAML 1.2\n---\na\n...\n", 0),
                ("# x\n%TAG ! !\n---\nb", 4)
            ]
        );
    }

    #[test]
    fn every_kind_of_line_break_counts_once() {
        assert_eq!(
            chunks("a\r\n---\r\nb\r---\rc\n"),
            [("a\r\n", 0), ("---\r\nb\r", 1), ("---\rc\n", 3)]
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_content() {
        assert_eq!(chunks("\u{feff}---\na"), [("---\na", 0)]);
    }
}

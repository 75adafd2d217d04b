//! From the parser's events to the nodes of one document.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use crate::document::Repeat;
use crate::node::{Content, Mark, Node, Slot};
use crate::scalar::{Scalar, check_collection_tag, resolve};
use crate::stream::Chunk;

/// How deep collections may lie within each other. Kubernetes' deepest objects
/// (schemas in a CustomResourceDefinition) stay well below.
pub const MAX_DEPTH: usize = 100;

/// How many bytes aliases and merge keys may add to all documents of one text
/// together, a value counting 64 and its text. A few lines of aliases of
/// aliases would otherwise be gigabytes.
pub const ALIAS_BUDGET: usize = 32 << 20;

/// What to do about a key that is given twice in one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DuplicateKeys {
    /// It is an error.
    #[default]
    Refuse,
    /// It is an error only if the values differ; otherwise the second is left
    /// out and listed in [`Document::repeats`](crate::Document::repeats).
    AllowEqual,
}

/// The nodes of a document, none if it has no content.
pub(crate) struct Composed {
    pub(crate) slots: Vec<Slot>,
    pub(crate) repeats: Vec<Repeat>,
}

type Problem = (Mark, String);

/// Reads the one document in `chunk`.
pub(crate) fn compose(
    chunk: Chunk<'_>,
    duplicates: DuplicateKeys,
    alias_budget: &mut usize,
) -> Result<Composed, Problem> {
    refuse_control_characters(chunk)?;
    let mut composer = Composer {
        first_line: chunk.first_line,
        duplicates,
        alias_budget,
        slots: Vec::new(),
        frames: Vec::new(),
        anchors: BTreeMap::new(),
        repeats: Vec::new(),
    };
    let mut parser = Parser::new_from_str(chunk.text);
    while let Some(event) = parser.next_event() {
        let (event, span) =
            event.map_err(|error| (composer.place(*error.marker()), error.info().to_owned()))?;
        composer.take(event, composer.place(span.start))?;
    }
    composer.repeats.sort_by_key(|repeat| repeat.again);
    Ok(Composed {
        slots: composer.slots,
        repeats: composer.repeats,
    })
}

/// YAML 1.2.2, production `c-printable`. The parser would take a NUL for the
/// end of the text and drop what follows without a word.
fn refuse_control_characters(chunk: Chunk<'_>) -> Result<(), Problem> {
    let forbidden = |b: u8| (b < b' ' && !matches!(b, b'\t' | b'\n' | b'\r')) || b == 0x7f;
    let Some(at) = chunk.text.bytes().position(forbidden) else {
        return Ok(());
    };
    let before = chunk.text[..at].replace("\r\n", "\n");
    let mark = Mark {
        line: chunk.first_line + before.matches(['\n', '\r']).count() + 1,
        column: before
            .rsplit(['\n', '\r'])
            .next()
            .map_or(0, |line| line.chars().count())
            + 1,
    };
    let byte = chunk.text.as_bytes()[at];
    Err((
        mark,
        format!("the control character 0x{byte:02x} is not allowed in YAML"),
    ))
}

/// What an anchor stands for.
enum Anchored {
    /// A collection that is still being read.
    Open,
    /// The slot it begins at.
    Slot(usize),
    /// A scalar that was used as a key.
    Key(Scalar),
}

/// A collection being read.
struct Frame {
    at: usize,
    anchor: usize,
    is_mapping: bool,
    /// The key whose value comes next.
    key: Option<Key>,
    has_merge: bool,
    height: usize,
}

struct Key {
    text: Box<str>,
    mark: Mark,
    is_merge: bool,
}

struct Composer<'b> {
    first_line: usize,
    duplicates: DuplicateKeys,
    alias_budget: &'b mut usize,
    slots: Vec<Slot>,
    frames: Vec<Frame>,
    anchors: BTreeMap<usize, Anchored>,
    repeats: Vec<Repeat>,
}

impl Composer<'_> {
    fn place(&self, marker: Marker) -> Mark {
        Mark {
            line: self.first_line + marker.line().max(1),
            column: marker.col() + 1,
        }
    }

    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<(), Problem> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.slots.is_empty() => Ok(()),
            Event::DocumentStart(_) => {
                let message = "a second value begins here; separate documents with '---'";
                Err((mark, message.to_owned()))
            }
            Event::Scalar(text, style, anchor, t) => {
                self.scalar(&text, style, anchor, t.as_deref(), mark)
            }
            Event::Alias(anchor) => self.alias(anchor, mark),
            Event::SequenceStart(anchor, t) => {
                check_collection_tag(t.as_deref(), "seq").map_err(|m| (mark, m))?;
                self.open(Content::Sequence, anchor, mark)
            }
            Event::MappingStart(anchor, t) => {
                check_collection_tag(t.as_deref(), "map").map_err(|m| (mark, m))?;
                self.open(Content::Mapping, anchor, mark)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        mark: Mark,
    ) -> Result<(), Problem> {
        let scalar = resolve(text, style, tag).map_err(|message| (mark, message))?;
        if self.awaits_key() {
            let is_merge = text == "<<" && style == ScalarStyle::Plain && tag.is_none();
            if anchor != 0 {
                self.anchors.insert(anchor, Anchored::Key(scalar.clone()));
            }
            return self.set_key(text, &scalar, is_merge, mark);
        }
        // The parser places an empty value at whatever comes after it.
        let is_empty = text.is_empty() && style == ScalarStyle::Plain;
        let at = self.push(Content::Scalar(scalar), mark, is_empty);
        if anchor != 0 {
            self.anchors.insert(anchor, Anchored::Slot(at));
        }
        self.closed(0);
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        (self.frames.last()).is_some_and(|frame| frame.is_mapping && frame.key.is_none())
    }

    fn set_key(
        &mut self,
        text: &str,
        scalar: &Scalar,
        is_merge: bool,
        mark: Mark,
    ) -> Result<(), Problem> {
        if *scalar == Scalar::Null {
            return Err((mark, "a key is missing here, or is null".to_owned()));
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.has_merge |= is_merge;
            frame.key = Some(Key {
                text: text.into(),
                mark,
                is_merge,
            });
        }
        Ok(())
    }

    /// Adds a node below the innermost open collection; returns its slot.
    fn push(&mut self, content: Content, mark: Mark, is_empty: bool) -> usize {
        let key = self.frames.last_mut().and_then(|frame| frame.key.take());
        let key_mark = key.as_ref().map_or(mark, |key| key.mark);
        let hidden = key.as_ref().is_some_and(|key| key.is_merge);
        self.slots.push(Slot {
            key: key.map(|key| key.text),
            key_mark,
            mark: if is_empty { key_mark } else { mark },
            len: 1,
            height: 0,
            hidden,
            content,
        });
        self.slots.len() - 1
    }

    fn open(&mut self, content: Content, anchor: usize, mark: Mark) -> Result<(), Problem> {
        if self.awaits_key() {
            return Err((mark, "a key must be a single word or string".to_owned()));
        }
        self.check_depth(1, mark)?;
        let is_mapping = content == Content::Mapping;
        let at = self.push(content, mark, false);
        if anchor != 0 {
            self.anchors.insert(anchor, Anchored::Open);
        }
        self.frames.push(Frame {
            at,
            anchor,
            is_mapping,
            key: None,
            has_merge: false,
            height: 0,
        });
        Ok(())
    }

    fn check_depth(&self, more: usize, mark: Mark) -> Result<(), Problem> {
        if self.frames.len() + more > MAX_DEPTH {
            let message = format!("collections are nested more than {MAX_DEPTH} deep");
            return Err((mark, message));
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        if frame.is_mapping {
            self.close_mapping(&frame)?;
        }
        let len = self.slots.len() - frame.at;
        let slot = &mut self.slots[frame.at];
        slot.len = len;
        slot.height = frame.height + 1;
        if frame.anchor != 0 {
            self.anchors.insert(frame.anchor, Anchored::Slot(frame.at));
        }
        self.closed(frame.height + 1);
        Ok(())
    }

    /// Tells the innermost open collection how high its new child is.
    fn closed(&mut self, height: usize) {
        if let Some(frame) = self.frames.last_mut() {
            frame.height = frame.height.max(height);
        }
    }

    fn close_mapping(&mut self, frame: &Frame) -> Result<(), Problem> {
        let mut entries = Vec::new();
        let mut at = frame.at + 1;
        while at < self.slots.len() {
            entries.push(at);
            at += self.slots[at].len;
        }
        let by_key = |at: &usize| (&self.slots[*at].key, *at);
        entries.sort_unstable_by(|a, b| by_key(a).cmp(&by_key(b)));
        self.check_duplicates(frame, &entries)?;
        if frame.has_merge {
            self.merge(frame, &entries)?;
        }
        Ok(())
    }

    /// `entries` are sorted by key, then by place.
    fn check_duplicates(&mut self, frame: &Frame, entries: &[usize]) -> Result<(), Problem> {
        let mut refused: Option<Problem> = None;
        let Some(&(mut first)) = entries.first() else {
            return Ok(());
        };
        for &again in &entries[1..] {
            if self.slots[first].key != self.slots[again].key {
                first = again;
                continue;
            }
            let key = self.slots[first].key.clone().unwrap_or_default();
            let (first_mark, mark) = (self.slots[first].key_mark, self.slots[again].key_mark);
            let same = Node::new(&self.slots, first).says_the_same(&Node::new(&self.slots, again));
            if self.duplicates == DuplicateKeys::AllowEqual && same && &*key != "<<" {
                self.slots[again].hidden = true;
                let path = self.path_in(frame, &key);
                self.repeats.push(Repeat {
                    path,
                    first: first_mark,
                    again: mark,
                });
            } else if refused
                .as_ref()
                .is_none_or(|(earliest, _)| mark < *earliest)
            {
                let line = first_mark.line;
                let message = format!("the key '{key}' is given twice; it is first on line {line}");
                refused = Some((mark, message));
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// `key` with the keys above it, as `spec.ports[].port`.
    fn path_in(&self, frame: &Frame, key: &str) -> String {
        let mut path = String::new();
        let above = self.frames.iter().map(|above| above.at).chain([frame.at]);
        for name in above.skip(1).map(|at| self.slots[at].key.as_deref()) {
            match name {
                Some(name) => path = join(&path, name),
                None => path.push_str("[]"),
            }
        }
        join(&path, key)
    }

    /// Adds what the merge keys of a mapping bring in and its own keys and
    /// earlier merges don't say (<https://yaml.org/type/merge.html>).
    fn merge(&mut self, frame: &Frame, entries: &[usize]) -> Result<(), Problem> {
        let merges = (entries.iter().copied())
            .filter(|&at| self.slots[at].key.as_deref() == Some("<<") && self.slots[at].hidden)
            .collect::<Vec<_>>();
        let mut taken = BTreeSet::new();
        let mut wanted = Vec::new();
        for &at in &merges {
            let node = Node::new(&self.slots, at);
            let sources = match self.slots[at].content {
                Content::Mapping => vec![node],
                Content::Sequence => node.items().collect(),
                Content::Scalar(_) => Vec::new(),
            };
            let good = |n: &Node<'_>| matches!(n.kind(), crate::Kind::Mapping);
            if matches!(self.slots[at].content, Content::Scalar(_)) || !sources.iter().all(good) {
                let message = "'<<' merges a mapping or a list of mappings".to_owned();
                return Err((self.slots[at].mark, message));
            }
            for (key, value) in sources.iter().flat_map(Node::entries) {
                let own = |&at: &usize| self.slots[at].key.as_deref().cmp(&Some(key));
                if entries.binary_search_by(own).is_err() && taken.insert(key.to_owned()) {
                    wanted.push(value.to_slots());
                }
            }
        }
        let mark = self.slots[frame.at].mark;
        for slots in wanted {
            self.pay(slots.iter().map(cost).sum(), mark)?;
            self.slots.extend(slots);
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, mark: Mark) -> Result<(), Problem> {
        let at = match self.anchors.get(&anchor) {
            Some(Anchored::Slot(at)) => *at,
            Some(Anchored::Key(scalar)) => {
                let scalar = scalar.clone();
                return self.alias_of_scalar(scalar, mark);
            }
            Some(Anchored::Open) => {
                return Err((mark, "the alias stands within its own anchor".to_owned()));
            }
            None => return Err((mark, "the alias has no anchor before it".to_owned())),
        };
        if let Content::Scalar(scalar) = &self.slots[at].content {
            let scalar = scalar.clone();
            return self.alias_of_scalar(scalar, mark);
        }
        if self.awaits_key() {
            return Err((mark, "a key must be a single word or string".to_owned()));
        }
        let height = self.slots[at].height;
        self.check_depth(height, mark)?;
        let range = at + 1..at + self.slots[at].len;
        self.pay(self.slots[range.clone()].iter().map(cost).sum(), mark)?;
        let below = self.slots[range].to_vec();
        let own = self.push(self.slots[at].content.clone(), mark, false);
        self.slots[own].len = below.len() + 1;
        self.slots[own].height = height;
        self.slots.extend(below);
        self.closed(height);
        Ok(())
    }

    fn alias_of_scalar(&mut self, scalar: Scalar, mark: Mark) -> Result<(), Problem> {
        self.pay(scalar.text_len() + NODE_COST, mark)?;
        if self.awaits_key() {
            let text = scalar.to_text();
            return self.set_key(&text, &scalar, false, mark);
        }
        self.push(Content::Scalar(scalar), mark, false);
        self.closed(0);
        Ok(())
    }

    fn pay(&mut self, bytes: usize, mark: Mark) -> Result<(), Problem> {
        match self.alias_budget.checked_sub(bytes) {
            Some(left) => {
                *self.alias_budget = left;
                Ok(())
            }
            None => Err((
                mark,
                format!("aliases expand to more than {} MiB", ALIAS_BUDGET >> 20),
            )),
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

const NODE_COST: usize = 64;

fn cost(slot: &Slot) -> usize {
    let text = match &slot.content {
        Content::Scalar(scalar) => scalar.text_len(),
        Content::Sequence | Content::Mapping => 0,
    };
    NODE_COST + text + slot.key.as_ref().map_or(0, |key| key.len())
}

//! Messages of nf_tables, put together by hand.
//!
//! Their numbers are those of `include/uapi/linux/netfilter/nf_tables.h`.

use crate::Family;
use crate::netlink::push_attribute;

/// Subsystem of nf_tables in nfnetlink (`NFNL_SUBSYS_NFTABLES`).
pub(super) const SUBSYSTEM: u8 = 10;

/// `NFT_MSG_*`.
pub(super) const NEW_TABLE: u8 = 0;
pub(super) const GET_TABLE: u8 = 1;
pub(super) const DELETE_TABLE: u8 = 2;
pub(super) const NEW_CHAIN: u8 = 3;
pub(super) const GET_CHAIN: u8 = 4;
pub(super) const DELETE_CHAIN: u8 = 5;
pub(super) const NEW_RULE: u8 = 6;
pub(super) const GET_RULE: u8 = 7;
pub(super) const DELETE_RULE: u8 = 8;
pub(super) const NEW_SET: u8 = 9;
pub(super) const GET_SET: u8 = 10;
pub(super) const DELETE_SET: u8 = 11;
pub(super) const NEW_ELEMENT: u8 = 12;
pub(super) const GET_ELEMENT: u8 = 13;
pub(super) const DELETE_ELEMENT: u8 = 14;
pub(super) const GET_GENERATION: u8 = 16;

/// Flags of a message (`NLM_F_*`): fail if there already; make; at the end.
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// The type field of a message's header.
pub(super) fn kind(message: u8) -> u16 {
    u16::from_be_bytes([SUBSYSTEM, message])
}

/// `struct nfgenmsg`, with which every message begins.
pub(super) const FIXED_PART: usize = 4;

/// A nested attribute (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// `NFTA_DATA_VALUE`: the value of a key, a mask, a constant.
const VALUE: u16 = 1;
/// `NFTA_LIST_ELEM`: an entry of a list.
pub(super) const LISTED: u16 = 1;

/// Attributes, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut ended = value.as_bytes().to_vec();
        ended.push(0);
        self.bytes(kind, &ended)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn long(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// A value as keys, masks and constants have it.
    pub(super) fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, &Attributes::default().bytes(VALUE, value))
    }

    /// The whole as a message about the family.
    pub(super) fn message(&self, family: Family) -> Vec<u8> {
        let mut payload = vec![family.netfilter_number(), 0, 0, 0];
        payload.extend(&self.0);
        payload
    }
}

/// Text that goes with an object for people to read, as nft stores it (libnftnl
/// `include/libnftnl/udata.h`): a type, a length, and the text with a zero at its end.
pub(super) fn comment(text: &str) -> Vec<u8> {
    const COMMENT: u8 = 0;
    let shown = shortened(text);
    let length = u8::try_from(shown.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![COMMENT, length];
    data.extend(shown.as_bytes());
    data.push(0);
    data
}

/// The text that a [`comment`] holds.
pub(super) fn comment_text(mut data: &[u8]) -> Option<&str> {
    loop {
        let [kind, length, rest @ ..] = data else {
            return None;
        };
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return std::str::from_utf8(value.strip_suffix(b"\0")?).ok();
        }
        data = rest.get(usize::from(*length)..)?;
    }
}

/// As much of a comment as nft takes when it reads a ruleset (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub(super) fn shortened(text: &str) -> &str {
    const MOST_BYTES: usize = 128;
    let mut end = text.len().min(MOST_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_as_it_was_written() {
        assert_eq!(
            comment_text(&comment("default/web:http")),
            Some("default/web:http")
        );
        let behind_another = [&[7, 2, 1, 1][..], &comment("x")].concat();
        assert_eq!(comment_text(&behind_another), Some("x"));
    }

    #[test]
    fn a_comment_is_no_longer_than_nft_reads() {
        assert_eq!(comment_text(&comment(&"x".repeat(255))).unwrap().len(), 128);
        assert_eq!(shortened(&"ü".repeat(100)).len(), 128);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_read_as_a_comment_is_survived(data: Vec<u8>) {
            comment_text(&data);
        }
    }
}

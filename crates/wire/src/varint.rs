//! Numbers of one to eight bytes (RFC 9000 section 16).

use bytes::{Buf, BufMut};

/// Longest form.
pub(crate) const MAX_VARINT: usize = 8;

/// Largest number that has a form.
const MOST: u64 = (1 << 62) - 1;

/// Appends `number`, which is below 2^62 as all numbers of streams are; a larger one is cut.
pub(crate) fn put(number: u64, to: &mut impl BufMut) {
    let number = number & MOST;
    match number {
        0..=0x3f => to.put_u8(number as u8),
        0x40..=0x3fff => to.put_u16(number as u16 | 1 << 14),
        0x4000..=0x3fff_ffff => to.put_u32(number as u32 | 2 << 30),
        _ => to.put_u64(number | 3 << 62),
    }
}

/// Takes a number from the front; none when there is no whole one.
pub(crate) fn take(from: &mut impl Buf) -> Option<u64> {
    let first = *from.chunk().first()?;
    let length = 1 << (first >> 6);
    if from.remaining() < length {
        return None;
    }
    Some(match length {
        1 => u64::from(from.get_u8()),
        2 => u64::from(from.get_u16() & 0x3fff),
        4 => u64::from(from.get_u32() & 0x3fff_ffff),
        _ => from.get_u64() & MOST,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 9000 appendix A.1.
        for (bytes, number) in [
            (&[0x25][..], 37),
            (&[0x40, 0x25], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
        ] {
            assert_eq!(take(&mut &bytes[..]), Some(number));
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(number in 0..=MOST) {
            let mut bytes = Vec::new();
            put(number, &mut bytes);
            prop_assert!(bytes.len() <= MAX_VARINT);
            prop_assert_eq!(take(&mut bytes.as_slice()), Some(number));
            let cut = bytes.len() - 1;
            prop_assert_eq!(take(&mut &bytes[..cut]), None);
        }
    }
}

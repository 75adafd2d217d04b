//! Two sorted lists, read side by side.

use std::cmp::Ordering;
use std::iter::Peekable;

/// Each key that is in either of two lists, with what it has in the one and in the other.
/// Both have to be sorted by key, and have each key once.
pub(crate) fn merged<K: Ord, V>(
    one: impl Iterator<Item = (K, V)>,
    other: impl Iterator<Item = (K, V)>,
) -> impl Iterator<Item = (K, Option<V>, Option<V>)> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || match first(&mut one, &mut other)? {
        Ordering::Less => one.next().map(|(key, value)| (key, Some(value), None)),
        Ordering::Greater => other.next().map(|(key, value)| (key, None, Some(value))),
        Ordering::Equal => {
            let (key, value) = one.next()?;
            Some((key, Some(value), other.next().map(|(_, value)| value)))
        }
    })
}

/// Which list has the next key.
fn first<K: Ord, V>(
    one: &mut Peekable<impl Iterator<Item = (K, V)>>,
    other: &mut Peekable<impl Iterator<Item = (K, V)>>,
) -> Option<Ordering> {
    match (one.peek(), other.peek()) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some((left, _)), Some((right, _))) => Some(left.cmp(right)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn each_key_comes_once_with_what_it_has_in_both(
            one: BTreeMap<u8, u8>,
            other: BTreeMap<u8, u8>,
        ) {
            let read: Vec<_> = merged(one.iter(), other.iter()).collect();
            let mut keys: Vec<u8> = one.keys().chain(other.keys()).copied().collect();
            keys.sort_unstable();
            keys.dedup();
            let expected: Vec<_> = keys
                .iter()
                .map(|key| (key, one.get(key), other.get(key)))
                .collect();
            proptest::prop_assert_eq!(read, expected);
        }
    }
}

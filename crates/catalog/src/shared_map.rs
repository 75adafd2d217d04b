//! A sorted map of which many versions live side by side, each next to the one that it follows.
//!
//! With ten thousand Services one changes at a time, and whoever follows them needs two things:
//! a version of his own that nobody changes under him, and to know what is different from the
//! version before. A map that is copied whole gives neither cheaply. This one is made of short
//! runs of entries; a copy shares all of them, a change copies one run, and two versions are
//! compared run by run, where the same run needs no look into it.

use std::cmp::Ordering;
use std::fmt;
use std::slice;
use std::sync::Arc;

/// Entries of a run at the most: what a change copies.
const LONGEST: usize = 64;

/// A run with fewer is joined with the one beside it, if both fit well into one.
const SHORTEST: usize = LONGEST / 4;

/// Room for so many entries is added to a run that has none left.
const ROOM: usize = 8;

/// A sorted map. Copies are cheap: they share their entries until one of them is changed, and
/// then still all but a few.
pub struct SharedMap<K, V> {
    /// None of them empty; all keys of one are below those of the next.
    runs: Arc<Vec<Run<K, V>>>,
    len: usize,
}

type Run<K, V> = Arc<Vec<(K, V)>>;

/// A key, with its value in an earlier and in a later version. One of them is there, or both
/// and different.
pub type Differing<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, sorted by key.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            runs: self.runs.iter(),
            run: [].iter(),
            left: self.len,
        }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, sorted by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The entry of `key`, with the key as it is stored.
    #[must_use]
    pub fn get_key_value(&self, key: &K) -> Option<(&K, &V)> {
        let run = self.runs.get(self.run_of(key))?;
        let (key, value) = run.get(place(run, key).ok()?)?;
        Some((key, value))
    }

    /// Whether `key` has a value.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get_key_value(key).is_some()
    }

    /// The entries from `key` on, sorted by key.
    pub fn starting_at(&self, key: &K) -> impl Iterator<Item = (&K, &V)> {
        let first = self.run_of(key);
        let (run, later) = match self.runs.get(first..).and_then(<[_]>::split_first) {
            Some((run, later)) => (&run[..], later),
            None => (&[][..], &[][..]),
        };
        let from = place(run, key).unwrap_or_else(|place| place);
        let later = later.iter().flat_map(|run| run.iter());
        run[from..].iter().chain(later).map(|(k, v)| (k, v))
    }

    /// The run that has `key`, or would have it.
    fn run_of(&self, key: &K) -> usize {
        let after = self.runs.partition_point(|run| match run.first() {
            Some((first, _)) => first <= key,
            None => true,
        });
        after.saturating_sub(1)
    }

    /// The keys whose values are not the same in `self` and in `later`, sorted. It costs what
    /// is different, if one version came from the other.
    pub fn differing<'a>(
        &'a self,
        later: &'a Self,
    ) -> impl Iterator<Item = Differing<'a, K, V>> + use<'a, K, V>
    where
        V: PartialEq,
    {
        self.not_shared(later)
            .filter(|(_, before, after)| before != after)
    }

    /// As [`differing`](Self::differing), with some keys whose values are the same.
    fn not_shared<'a>(&'a self, later: &'a Self) -> NotShared<'a, K, V> {
        NotShared {
            before: Reader::of(self),
            after: Reader::of(later),
        }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Gives `key` this value; returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.run_of(&key);
        let runs = Arc::make_mut(&mut self.runs);
        let Some(run) = runs.get_mut(at) else {
            runs.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        match place(run, &key) {
            Ok(place) => {
                let known = Arc::make_mut(run).get_mut(place)?;
                Some(std::mem::replace(&mut known.1, value))
            }
            Err(place) => {
                self.len += 1;
                add(runs, at, place, (key, value));
                None
            }
        }
    }

    /// Takes `key` out; returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.run_of(key);
        let place = place(self.runs.get(at)?, key).ok()?;
        let runs = Arc::make_mut(&mut self.runs);
        let run = Arc::make_mut(runs.get_mut(at)?);
        let (_, value) = run.remove(place);
        self.len -= 1;
        if run.is_empty() {
            runs.remove(at);
        } else if run.len() < SHORTEST {
            join(runs, at.saturating_sub(1));
        }
        Some(value)
    }
}

/// Where in a run `key` is, or belongs.
fn place<K: Ord, V>(run: &[(K, V)], key: &K) -> Result<usize, usize> {
    run.binary_search_by(|(known, _)| known.cmp(key))
}

/// Adds an entry to run `at`, which becomes two if it is full.
fn add<K: Clone, V: Clone>(runs: &mut Vec<Run<K, V>>, at: usize, place: usize, entry: (K, V)) {
    let is_last = at + 1 == runs.len();
    let Some(run) = runs.get_mut(at) else {
        return;
    };
    if run.len() < LONGEST {
        let run = Arc::make_mut(run);
        if run.len() == run.capacity() {
            run.reserve_exact(ROOM);
        }
        run.insert(place, entry);
    } else if is_last && place == run.len() {
        // Keys that come in their order fill all runs.
        runs.push(Arc::new(vec![entry]));
    } else {
        let (first, second) = run.split_at(LONGEST / 2);
        let (mut first, mut second) = (first.to_vec(), second.to_vec());
        match place.checked_sub(first.len()) {
            Some(place) => second.insert(place, entry),
            None => first.insert(place, entry),
        }
        *run = Arc::new(first);
        runs.insert(at + 1, Arc::new(second));
    }
}

/// Makes run `at` and the one after it one, if that leaves room in it.
fn join<K: Clone, V: Clone>(runs: &mut Vec<Run<K, V>>, at: usize) {
    let lengths = runs.get(at).zip(runs.get(at + 1));
    if lengths.is_some_and(|(one, other)| one.len() + other.len() <= LONGEST - SHORTEST) {
        let other = runs.remove(at + 1);
        if let Some(one) = runs.get_mut(at) {
            Arc::make_mut(one).extend_from_slice(&other);
        }
    }
}

/// All entries of a [`SharedMap`], sorted by key.
pub struct Iter<'a, K, V> {
    runs: slice::Iter<'a, Run<K, V>>,
    run: slice::Iter<'a, (K, V)>,
    left: usize,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.run.next() {
                self.left = self.left.saturating_sub(1);
                return Some((key, value));
            }
            self.run = self.runs.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Two versions, read side by side.
struct NotShared<'a, K, V> {
    before: Reader<'a, K, V>,
    after: Reader<'a, K, V>,
}

impl<'a, K: Ord, V> Iterator for NotShared<'a, K, V> {
    type Item = Differing<'a, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        while let (Some(before), Some(after)) = (self.before.whole_run(), self.after.whole_run())
            && Arc::ptr_eq(before, after)
        {
            self.before.skip_run();
            self.after.skip_run();
        }
        let order = match (self.before.peek(), self.after.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        match order {
            Ordering::Less => self
                .before
                .next()
                .map(|(key, value)| (key, Some(value), None)),
            Ordering::Greater => self
                .after
                .next()
                .map(|(key, value)| (key, None, Some(value))),
            Ordering::Equal => {
                let (_, before) = self.before.next()?;
                let (key, after) = self.after.next()?;
                Some((key, Some(before), Some(after)))
            }
        }
    }
}

/// A place in a map: never at the end of a run, unless it is the end of all.
struct Reader<'a, K, V> {
    runs: &'a [Run<K, V>],
    place: usize,
}

impl<'a, K, V> Reader<'a, K, V> {
    fn of(map: &'a SharedMap<K, V>) -> Self {
        Self {
            runs: &map.runs,
            place: 0,
        }
    }

    /// The run that begins here, if one does.
    fn whole_run(&self) -> Option<&'a Run<K, V>> {
        self.runs.first().filter(|_| self.place == 0)
    }

    fn skip_run(&mut self) {
        self.runs = self.runs.get(1..).unwrap_or_default();
        self.place = 0;
    }

    fn peek(&self) -> Option<&'a (K, V)> {
        self.runs.first()?.get(self.place)
    }

    fn next(&mut self) -> Option<&'a (K, V)> {
        let entry = self.peek()?;
        self.place += 1;
        if self.runs.first().is_some_and(|run| run.len() == self.place) {
            self.skip_run();
        }
        Some(entry)
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            runs: Arc::clone(&self.runs),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self {
            runs: Arc::default(),
            len: 0,
        }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differing(other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

#[cfg(test)]
#[path = "shared_map_tests.rs"]
mod tests;

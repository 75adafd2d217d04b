//! A shared map is a map, whatever its versions share.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Map = SharedMap<u16, u8>;

/// Makes changes: of few keys, so that they meet, or of many in their order.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u16..400, any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (0_u16..400).prop_map(Step::Remove),
        1 => (0_u16..400, 0_u16..150).prop_map(|(first, count)| Step::Fill(first, count)),
        1 => (0_u16..400, 0_u16..150).prop_map(|(first, count)| Step::Clear(first, count)),
    ];
    vec(step, 0..40)
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u16, u8),
    Remove(u16),
    Fill(u16, u16),
    Clear(u16, u16),
}

fn change(map: &mut Map, model: &mut BTreeMap<u16, u8>, step: &Step) {
    match *step {
        Step::Insert(key, value) => assert_eq!(map.insert(key, value), model.insert(key, value)),
        Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
        Step::Fill(first, count) => {
            for key in first..first + count {
                assert_eq!(map.insert(key, 0), model.insert(key, 0));
            }
        }
        Step::Clear(first, count) => {
            for key in first..first + count {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
        }
    }
}

fn is_in_order(map: &Map) {
    assert!(
        map.runs
            .iter()
            .all(|run| (1..=LONGEST).contains(&run.len()))
    );
    assert_eq!(
        map.runs.iter().map(|run| run.len()).sum::<usize>(),
        map.len()
    );
}

proptest! {
    #[test]
    fn it_holds_what_any_other_sorted_map_holds(steps in steps(), keys in vec(0_u16..600, 0..20)) {
        let (mut map, mut model) = (Map::default(), BTreeMap::new());
        for step in &steps {
            change(&mut map, &mut model, step);
            is_in_order(&map);
        }
        prop_assert!(map.iter().eq(model.iter()));
        prop_assert_eq!(map.iter().size_hint(), (model.len(), Some(model.len())));
        prop_assert!(map.keys().eq(model.keys()) && map.values().eq(model.values()));
        prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        for key in keys {
            prop_assert_eq!(map.get_key_value(&key), model.get_key_value(&key));
            prop_assert!(map.starting_at(&key).eq(model.range(key..)));
        }
        prop_assert_eq!(&map, &model.into_iter().collect::<Map>());
    }

    #[test]
    fn a_version_stays_as_it_was_and_differs_from_later_ones_in_what_was_changed(
        first in steps(),
        then in steps(),
    ) {
        let (mut map, mut model) = (Map::default(), BTreeMap::new());
        for step in &first {
            change(&mut map, &mut model, step);
        }
        let (before, known) = (map.clone(), model.clone());
        for step in &then {
            change(&mut map, &mut model, step);
        }
        prop_assert!(before.iter().eq(known.iter()));
        let keys: BTreeSet<&u16> = known.keys().chain(model.keys()).collect();
        let expected = keys
            .into_iter()
            .map(|key| (key, known.get(key), model.get(key)))
            .filter(|(_, before, after)| before != after);
        prop_assert!(before.differing(&map).eq(expected));
        prop_assert_eq!(before == map, known == model);
    }
}

#[test]
fn comparing_with_a_changed_copy_looks_at_few_entries() {
    let map: Map = (0..10_000).map(|key| (key, 0)).collect();
    let mut later = map.clone();
    later.remove(&10);
    later.insert(5_000, 1);
    later.insert(20_000, 0);
    assert_eq!(map.differing(&later).count(), 3);
    assert!(map.not_shared(&later).count() <= 3 * LONGEST);
}

#[test]
fn keys_that_come_in_their_order_fill_the_runs() {
    let map: Map = (0..10_000).map(|key| (key, 0)).collect();
    assert_eq!(map.runs.len(), 10_000_usize.div_ceil(LONGEST));
}

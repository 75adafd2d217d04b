use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn key(dir: &TempDir) -> NodeKey {
    NodeKey::load_or_create(dir.path()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn first_start_makes_a_key_that_only_its_owner_can_read_and_the_second_finds_it() {
    let parent = dir();
    let state = parent.path().join("var/lib");
    let first = NodeKey::load_or_create(&state).unwrap();
    assert_eq!(mode(&state.join(FILE)), 0o600);
    assert_eq!(mode(&state), 0o700);
    let second = NodeKey::load_or_create(&state).unwrap();
    assert_eq!(second.public(), first.public());
    assert_eq!(second.previous(), None);
}

#[test]
fn two_nodes_have_two_keys() {
    assert_ne!(key(&dir()).public(), key(&dir()).public());
}

#[test]
fn nothing_that_is_shown_holds_the_private_half() {
    let at = dir();
    let key = key(&at);
    let secret = key.secret().to_bytes();
    let text = fs::read_to_string(at.path().join(FILE)).unwrap();
    let private = text
        .lines()
        .find_map(|line| line.strip_prefix("private-key: "));
    let shown = format!("{key:?}");
    assert!(shown.contains(&key.public().to_string()), "{shown}");
    assert!(!shown.contains(private.unwrap()), "{shown}");
    assert!(!shown.contains(&format!("{secret:?}")), "{shown}");
}

#[test]
fn key_that_others_can_read_is_refused_and_told_what_to_do() {
    let at = dir();
    key(&at);
    let path = at.path().join(FILE);
    for open in [0o640, 0o604, 0o620, 0o601] {
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        let error = NodeKey::load_or_create(at.path()).unwrap_err();
        assert!(matches!(error, KeyError::TooOpen { mode, .. } if mode == open));
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn key_behind_a_link_is_judged_by_what_the_link_leads_to() {
    let (at, elsewhere) = (dir(), dir());
    let expected = key(&elsewhere).public();
    symlink(elsewhere.path().join(FILE), at.path().join(FILE)).unwrap();
    assert_eq!(key(&at).public(), expected);
}

#[test]
fn damaged_key_is_an_error_and_is_left_as_it_is() {
    let at = dir();
    key(&at);
    let path = at.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let cut = &whole[..whole.len() - 9];
    for damaged in [b"".as_slice(), cut, &[0xff; 40], &[b'#'; 5000]] {
        fs::write(&path, damaged).unwrap();
        let error = NodeKey::load_or_create(at.path()).unwrap_err();
        assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
}

#[test]
fn what_an_agent_left_that_died_while_it_made_its_key_is_no_obstacle() {
    let at = dir();
    fs::write(at.path().join(TEMPORARY), "private-k").unwrap();
    key(&at);
    assert_eq!(names(&at), [FILE]);
}

#[test]
fn rotated_key_is_used_from_the_next_start_on_and_the_old_one_vouches_for_it() {
    let at = dir();
    let old = key(&at);
    let Rotated::Made { current, next } = NodeKey::rotate(at.path()).unwrap() else {
        panic!("a key was waiting already");
    };
    assert_eq!(current, old.public());
    assert_eq!(mode(&at.path().join(NEXT)), 0o600);

    let new = key(&at);
    assert_eq!(new.public(), next);
    let previous = new.previous().unwrap();
    assert_eq!(previous.public_key, old.public());
    assert!(is_successor(previous, &new.public()));
    assert_eq!(names(&at), [FILE]);
    assert_eq!(key(&at).previous(), new.previous());
}

#[test]
fn second_rotation_before_a_start_changes_nothing() {
    let at = dir();
    key(&at);
    let Rotated::Made { current, next } = NodeKey::rotate(at.path()).unwrap() else {
        panic!("a key was waiting already");
    };
    let again = NodeKey::rotate(at.path()).unwrap();
    assert_eq!(again, Rotated::AlreadyWaiting { current, next });
    assert_eq!(key(&at).public(), next);
}

#[test]
fn node_without_a_key_has_nothing_to_rotate() {
    let error = NodeKey::rotate(dir().path()).unwrap_err();
    assert!(matches!(error, KeyError::NoKeyYet { .. }), "{error}");
}

#[test]
fn word_of_a_key_counts_for_the_one_key_that_it_is_about() {
    let (old, new, other) = (
        NodeKey::generate(),
        NodeKey::generate(),
        NodeKey::generate(),
    );
    let previous = old.statement_for(new.public());
    assert!(is_successor(&previous, &new.public()));
    assert!(!is_successor(&previous, &other.public()));
    let of_another = PreviousKey {
        public_key: other.public(),
        ..previous.clone()
    };
    assert!(!is_successor(&of_another, &new.public()));
    // The same bytes, signed for something else.
    let bare = [*old.public().as_bytes(), *new.public().as_bytes()].concat();
    let without_context = PreviousKey {
        signature: old.sign(&bare),
        ..previous
    };
    assert!(!is_successor(&without_context, &new.public()));
}

#[test]
fn waiting_key_whose_statement_is_for_another_key_is_damaged_and_can_be_removed() {
    let at = dir();
    let in_use = key(&at).public();
    NodeKey::rotate(at.path()).unwrap();
    let waiting = at.path().join(NEXT);
    let text = fs::read_to_string(&waiting).unwrap();
    let other = KeyText {
        secret: [3; 32],
        previous: KeyText::parse(&text).unwrap().previous,
    };
    fs::write(&waiting, other.print()).unwrap();
    let error = NodeKey::load_or_create(at.path()).unwrap_err();
    assert!(matches!(
        error,
        KeyError::DamagedNext { path, source: NotAKey::WrongStatement } if path == waiting
    ));
    fs::remove_file(waiting).unwrap();
    assert_eq!(key(&at).public(), in_use);
}

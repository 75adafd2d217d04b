//! Which known word a mistyped one was meant to be.

/// Words longer than any key are nobody's typing mistake, and costly to compare.
const LONGEST: usize = 64;

/// The word of `known` that is nearest to `word`, if one is near enough.
///
/// Case doesn't count. A third of the letters may differ, at least one.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    near_matches(word, known, 1).pop()
}

/// The words of `known` that are near enough to `word`, nearest first, `most` of them.
pub(crate) fn near_matches<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Vec<&'a str> {
    if word.len() > LONGEST {
        return Vec::new();
    }
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter(|candidate| candidate.len() <= 2 * LONGEST)
        .map(|candidate| {
            let letters: Vec<char> = candidate.to_lowercase().chars().collect();
            (distance(&word, &letters), candidate)
        })
        .filter(|(distance, candidate)| *distance <= (candidate.len().min(word.len()) / 3).max(1))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter()
        .take(most)
        .map(|(_, candidate)| candidate)
        .collect()
}

/// How many letters to add, remove, replace or swap with their neighbour (the optimal
/// string alignment distance).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = last;
        last = row;
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["enable", "listenPort", "socketMark", "serviceFilterMode"];

    #[test]
    fn a_typing_mistake_finds_its_word() {
        for (word, meant) in [
            ("enabled", Some("enable")),
            ("enbale", Some("enable")),
            ("listen_port", Some("listenPort")),
            ("ServiceFilter", Some("serviceFilterMode")),
            ("qps", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, KNOWN), meant, "{word}");
        }
    }

    #[test]
    fn several_near_words_are_told_nearest_first() {
        let known = ["web", "wed", "webs", "dns"];
        assert_eq!(near_matches("web", known, 2), ["web", "webs"]);
        assert_eq!(near_matches("dms", known, 3), ["dns"]);
    }

    #[test]
    fn words_of_any_length_are_compared_without_panic() {
        assert_eq!(nearest(&"x".repeat(1_000_000), KNOWN), None);
        assert_eq!(nearest("é", ["è", "à"]), Some("à"));
    }
}

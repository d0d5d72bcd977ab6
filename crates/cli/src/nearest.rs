// SPDX-License-Identifier: Apache-2.0
//! The name somebody may have meant.

/// More wrong letters than this are another word.
const MAX_DISTANCE: usize = 3;

/// The nearest of `names`, when it is near.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let most = MAX_DISTANCE.min(word.chars().count().div_ceil(2));
    let rated = names.into_iter().map(|name| (distance(&word, &name.to_lowercase()), name));
    rated
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Letters to add, drop, change or swap with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let width = right.len() + 1;
    let mut rows = vec![vec![0; width]; left.len() + 1];
    rows[0] = (0..width).collect();
    for i in 1..=left.len() {
        rows[i][0] = i;
        for j in 1..width {
            let is_same = left[i - 1] == right[j - 1];
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            best = best.min(rows[i - 1][j - 1] + usize::from(!is_same));
            let is_swap = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if is_swap {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["ports", "image", "purgeCounter"];
        assert_eq!(nearest("prots", names), Some("ports"));
        assert_eq!(nearest("Imgae", names), Some("image"));
        assert_eq!(nearest("purgecounter", names), Some("purgeCounter"));
        assert_eq!(nearest("volume", names), None);
        assert_eq!(nearest("", names), None);
    }
}

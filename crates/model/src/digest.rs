//! Equal situations, equal digests: what only names something is replaced by its rank among the names still in
//! use.
//!
//! Instances are compared for equality only and numbers of one instance for order only; a new one is always the
//! highest. So their ranks from the top say all that matters: a cluster that beats on without incident comes back
//! to the same digest.

use election::situation::Word;
use protocol::{Instance, Number};

/// Instances of one server lie between one multiple of this and the next.
pub const INSTANCES: u64 = 1000;

/// Rounds this far from the present one are all the same.
const ROUNDS: i64 = 8;

/// The digest of a situation. `scratch` is emptied first, and kept to be used again.
pub fn digest(words: &[Word], scratch: &mut Vec<(Instance, Number)>) -> u64 {
    let used = scratch;
    used.clear();
    let mut rounds = [0i64; 8];
    for word in words {
        match word {
            Word::Number(i, k) => used.push((*i, *k)),
            Word::RoundNow(server, round) => rounds[*server] = *round as i64,
            Word::Plain(_) | Word::Sent(..) | Word::Released(..) | Word::Round(..) => {}
        }
    }
    used.sort_unstable();
    used.dedup();
    let mut hash = 0x243f_6a88_85a3_08d3;
    for word in words {
        match *word {
            Word::Plain(word) => mix(&mut hash, word),
            Word::Number(i, k) => mix(&mut hash, rank(used, i, k)),
            Word::Sent(i, k, at, lease) => {
                if used.binary_search(&(i, k)).is_ok() {
                    mix(&mut hash, rank(used, i, k));
                    mix(&mut hash, at);
                    mix(&mut hash, lease);
                }
            }
            Word::Released(server, i, k) => {
                let covered = used.iter().filter(|(j, n)| *j == i && *n <= k).count();
                if covered > 0 {
                    mix(&mut hash, server as u64 | 0x5e << 32);
                    mix(&mut hash, rank(used, i, k));
                }
            }
            Word::Round(server, round) => {
                let apart = (round as i64 - rounds[server]).clamp(-ROUNDS, ROUNDS);
                mix(&mut hash, apart.cast_unsigned());
            }
            Word::RoundNow(..) => {}
        }
    }
    hash
}

/// Of which server, how many of its instances in use are newer, how many numbers of this one in use are higher.
fn rank(used: &[(Instance, Number)], i: Instance, k: Number) -> u64 {
    let server = i.0 / INSTANCES;
    let mut newer = 0;
    let mut higher = 0;
    let mut last = i;
    let from = used.partition_point(|u| *u <= (i, k));
    for (instance, _) in &used[from..] {
        if *instance == i {
            higher += 1;
        } else if instance.0 / INSTANCES != server {
            break;
        } else if *instance != last {
            newer += 1;
            last = *instance;
        }
    }
    server << 48 | newer << 32 | higher
}

/// Folded multiplication, as in wyhash (Wang Yi, 2019).
pub fn mix(hash: &mut u64, word: u64) {
    let product =
        u128::from(*hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xd6e8_feb8_6659_fd93);
    *hash = ((product >> 64) ^ product) as u64;
    *hash = (*hash ^ word.rotate_left(23)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (*hash >> 31);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Instance = Instance(INSTANCES + 1);
    const SECOND: Instance = Instance(INSTANCES + 2);

    fn of(words: &[Word]) -> u64 {
        digest(words, &mut Vec::new())
    }

    fn number(i: Instance, k: u64) -> Word {
        Word::Number(i, Number(k))
    }

    #[test]
    fn only_the_order_of_numbers_matters() {
        let then = [number(FIRST, 7), number(FIRST, 3), number(FIRST, 7)];
        let later = [number(SECOND, 90), number(SECOND, 89), number(SECOND, 90)];
        assert_eq!(of(&then), of(&later));
        let other = [number(FIRST, 7), number(FIRST, 3), number(FIRST, 3)];
        assert_ne!(of(&then), of(&other));
    }

    #[test]
    fn a_former_instance_is_not_the_present_one() {
        let same = [number(SECOND, 7), number(SECOND, 7)];
        let other = [number(SECOND, 7), number(FIRST, 7)];
        assert_ne!(of(&same), of(&other));
    }

    #[test]
    fn what_nobody_knows_of_any_more_does_not_matter() {
        let now = number(FIRST, 9);
        let sent = Word::Sent(FIRST, Number(4), 1, 1);
        let released = Word::Released(0, FIRST, Number(5));
        assert_eq!(of(&[now]), of(&[now, sent, released]));
        let known = [now, number(FIRST, 4)];
        assert_ne!(of(&known), of(&[now, number(FIRST, 4), sent]));
        assert_ne!(of(&known), of(&[now, number(FIRST, 4), released]));
    }

    #[test]
    fn rounds_count_from_the_present_one() {
        let round = |now, then| of(&[Word::RoundNow(1, now), Word::Round(1, then)]);
        assert_eq!(round(5, 4), round(9, 8));
        assert_ne!(round(5, 4), round(5, 5));
    }
}

//! What may not happen before the memory that it relies on is written (ELECTION R6, R8).

use crate::output::{Output, RoleChange};

/// Keeps a turn's outputs back while the run-dir cannot be written.
///
/// What the elector makes anew by itself (beats, acknowledgements, signals, the next extension of a gate) is dropped.
/// To become master is said once only: it waits, since role scripts must not start what no gate protects, and is
/// forgotten when the mastership ends before.
#[derive(Default)]
pub struct Withheld {
    masters: Vec<RoleChange>,
}

impl Withheld {
    /// What of this output is to be carried out now; `remembered` says whether all memory before it is written.
    pub fn pass(&mut self, output: Output, remembered: bool) -> Option<Output> {
        match output {
            Output::Beat(_) | Output::Ack { .. } | Output::Signal { .. } | Output::Open(..) => {
                remembered.then_some(output)
            }
            Output::Role(mut change) => {
                let same = |c: &RoleChange| c.virtual_server == change.virtual_server;
                let waiting = self.masters.iter().position(same);
                let waited = waiting.map(|i| self.masters.remove(i));
                let never_said = waited.is_some_and(|w| !w.renewed);
                if change.master {
                    change.renewed &= !never_said;
                    if !remembered {
                        self.masters.push(change);
                        return None;
                    }
                } else if never_said {
                    return None;
                }
                Some(Output::Role(change))
            }
            _ => Some(output),
        }
    }

    /// What waited, once the memory is written: one at a time.
    pub fn next(&mut self, remembered: bool) -> Option<Output> {
        (remembered && !self.masters.is_empty()).then(|| Output::Role(self.masters.remove(0)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{BootTime, Term};

    fn role(master: bool, renewed: bool, term: u64) -> Output {
        Output::Role(RoleChange {
            virtual_server: "web".parse().unwrap(),
            master,
            term: Term(term),
            renewed,
            holder: None,
            reason: String::new(),
        })
    }

    #[test]
    fn a_master_is_made_known_when_the_memory_is_written() {
        let mut withheld = Withheld::default();
        let open = Output::Open("web".parse().unwrap(), BootTime(1));
        assert_eq!(withheld.pass(open.clone(), false), None);
        assert_eq!(withheld.pass(role(true, false, 2), false), None);
        assert_eq!(withheld.pass(role(true, true, 3), false), None);
        assert_eq!(withheld.next(false), None);
        assert_eq!(withheld.next(true), Some(role(true, false, 3)));
        assert_eq!(withheld.next(true), None);
        assert_eq!(withheld.pass(open.clone(), true), Some(open));
    }

    #[test]
    fn a_mastership_that_ended_before_was_none() {
        let mut withheld = Withheld::default();
        assert_eq!(withheld.pass(role(true, false, 2), false), None);
        assert_eq!(withheld.pass(role(false, false, 2), false), None);
        assert_eq!(withheld.next(true), None);
        // A master of before ends, whatever of its later terms was said.
        assert_eq!(withheld.pass(role(true, true, 3), false), None);
        let ends = role(false, false, 3);
        assert_eq!(withheld.pass(ends.clone(), false), Some(ends));
        assert_eq!(withheld.next(true), None);
    }
}

//! Planted bugs: is the proof worth anything?
//!
//! A checker that has never failed proves nothing. So each rule that the safety or the speed of standin rests on can
//! be broken on purpose, one at a time, and `make mutants` shows which checker notices: the model (`crates/model`), the
//! simulator (`crates/sim`) or chaos against the real daemons.
//!
//! The place of a bug reads
//!
//! ```
//! # use mutants::{Mutant, planted};
//! # let free = true;
//! if free || planted(Mutant::PromiseNotKept) { /* ... */ }
//! ```
//!
//! Without the feature `plant`, which nothing that is shipped turns on, [`planted`] is `false` at compile time and
//! nothing of it is left. With it the bug is chosen for the whole process: by [`plant`], or by the environment
//! variable [`VARIABLE`] in a daemon.
//!
//! To add one: a line in the list below, `planted(...)` in the code, and a run of `make mutants`. What can break
//! without anybody being able to tell is no bug and not listed.
//!
//! So second locks are missing from it, one rule behind another that alone would do:
//!
//! - A master does not claim while its own promise is another's (R4). It never is: a master that is called, or meets
//!   a rival, leaves its role first (R14, R17), and its floor would forbid the claim.
//! - A master refuses its vote while its gate is open (R14). Its own promise lasts as long as its gate, and longer.
//!   Both together are `GrantsWhileServing`.
//! - A master claims in no term and for no lease that is not on disk (R5, R23). Its call was in that term already, a
//!   longer lease is used only when it is on disk, and what is on disk is not lowered below the lease in use.
//! - A gate that is being shut is not opened (R8). Who shuts it has no mastership left that could be extended. Both
//!   together are `ReopensWhileShutting`.
//! - A release does not end a firm promise (R20). To be covered by it, the promise must have been refreshed by a claim
//!   that is not below the floor, which the run-dir keeps; such a claim is of the mastership that was forgotten or of
//!   a later one, and what its holder sent before it has a lower number or is of an instance whose gate is gone.

/// Names the bug to a daemon.
pub const VARIABLE: &str = "STANDIN_MUTANT";

macro_rules! mutants {
    ($($name:ident $place:literal $what:literal,)*) => {
        /// One planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Mutant {
            $(#[doc = $what] $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is chosen by.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The rule that it breaks (ELECTION), or the process.
            pub const fn place(self) -> &'static str {
                match self { $(Self::$name => $place,)* }
            }

            /// What is wrong.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

mutants! {
    UsableWholeLease "R1" "a master uses the whole of a promise: clocks that differ are ignored",
    PromiseNotKept "R4" "a promise to one server binds nobody",
    OldTermsAcknowledged "R5" "a claim in a lower term than the floor is acknowledged",
    StaleCounts "R5" "a released or overtaken beat or call counts",
    LeaseFromReceipt "R7" "a lease runs from the arrival of a promise, not from what it answers",
    ExtendsUnasked "R7" "each own beat extends the lease, acknowledged or not",
    OneVoterFewer "R7" "the lease needs one promise fewer than a majority",
    ReopensWhileShutting "R8" "a master that gives up is master until its gate is shut: an acknowledgement opens it again",
    NoGivingUp "R9" "a lost lease is never given up",
    RankIgnored "R11" "everybody stands at once",
    NoPreVote "R12" "a candidate calls without asking first",
    DoctorNotAsked "R12" "a voter does not mind that the master is alive",
    FloorNotLearned "R12" "a floor that is told is not heard",
    OneVoteFewer "R13" "one vote less than a majority elects",
    OtherCallGranted "R13" "a vote for an earlier call counts for the present one",
    VotesTwice "R14" "a second vote in the same term",
    GrantsWhileServing "R4, R14" "a master grants though it serves, and though its own promise is its own",
    NoBackOff "R15" "who failed tries again at once",
    NoRenewal "R16" "an electd that finds its gate open gives it up",
    ReleaseEndsAny "R18" "a release ends promises that it does not cover",
    OldReleaseCounts "R18" "an older release makes valid what a later one had released",
    ReleaseBeforeShut "R18" "the release leaves before the gate reads back shut",
    SuccessorsCompete "R19" "others stand beside the invited server",
    PromisesForgotten "R20" "a restarted electd forgets whom it promised to",
    FirmForOwnLease "R20" "a restarted electd is bound for its own lease, not for the longest promise",
    RestartedVotes "R20" "a rebooted voter votes at once",
    ToldSilenceIgnored "R20" "a silent server does not mind what the others may have been promised",
    SilenceUnheard "R20" "a silence ends though no majority was heard",
    MemoryLate "R20" "the memory is written after the message that relies on it",
    BlankVotes "R21" "a server without a reservation takes part",
    BlankForgetsFloors "R21" "a blank server takes no floor from the others",
    BlankForgetsLeases "R21" "a blank server takes no longest promise from the others",
    ReservationNotSynced "R22" "a term counts as reserved before it is on disk",
    FailedWriteForgotten "R22" "a write that failed is taken to have left nothing on the disk",
    LongPromiseNotSynced "R23" "a longer promise is given before it is on disk",
    LongestLoweredEarly "R23" "the longest promise is lowered while one may bind",
    RosterTwoAtATime "R24" "the roster changes before a majority has the last change",
    OldRosterCalls "R24" "a call with an older roster gets votes",
    OldRosterPromised "R24" "a claim of a server with an older roster is acknowledged",
    PromisesNotSettled "R24" "an acknowledgement tells the roster on disk, whatever was promised by an older one",
    PartTakenForAll "R25" "what a part of a beat does not name counts as not claimed",
    LeaseByDisk "R7, R24" "a master counts by the roster on its disk, whatever it knows",
    IncarnationUnchecked "R26, hbd" "packets of a former incarnation are heard",
    ReplayHeard "R26, hbd" "a packet counts as often as it arrives",
    ChallengeUnchecked "R26, hbd" "any answer makes an incarnation known",
    AnyAnswerProves "R26, hbd" "a recorded answer proves that a former incarnation still runs",
    SessionUnchecked "R26, listend" "frames are not tied to their session",
    PreferredAgain "R27" "a preferred server gets a handover as often as it can",
    BlindAccuses "doctord" "a doctor that was stalled accuses the silent",
    SilenceOverlooked "doctord" "a server is alive for ten leases after its last beat",
    WaysAlike "clock" "a packet is taken to need as long as its answer",
    GateStaysOpen "R8, takeover" "the gate in the kernel opens for a minute",
    AnnouncesNothing "takeover" "nobody is told where the addresses are now",
    DeadNotReplaced "standin run" "a role that died is not started again",
}

#[cfg(feature = "plant")]
mod planting {
    use super::{Mutant, VARIABLE};
    use std::sync::{
        Once,
        atomic::{AtomicU8, Ordering::Relaxed},
    };

    const NONE: u8 = u8::MAX;
    static PLANTED: AtomicU8 = AtomicU8::new(NONE);
    static ASKED: Once = Once::new();

    /// Plants this bug, and no other, in the whole process.
    pub fn plant(mutant: Option<Mutant>) {
        ASKED.call_once(|| ());
        PLANTED.store(mutant.map_or(NONE, |m| m as u8), Relaxed);
    }

    /// Is this bug planted?
    #[inline]
    pub fn planted(mutant: Mutant) -> bool {
        ASKED.call_once(|| {
            let named = std::env::var(VARIABLE).ok();
            let chosen = Mutant::ALL
                .iter()
                .find(|m| named.as_deref() == Some(m.name()));
            PLANTED.store(chosen.map_or(NONE, |m| *m as u8), Relaxed);
        });
        PLANTED.load(Relaxed) == mutant as u8
    }
}

#[cfg(feature = "plant")]
pub use planting::{plant, planted};

/// Is this bug planted?
#[cfg(not(feature = "plant"))]
#[inline]
pub const fn planted(_: Mutant) -> bool {
    false
}

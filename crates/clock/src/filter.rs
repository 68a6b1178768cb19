//! Phase and rate of a clock from samples of unequal worth: a Kalman filter of two states.

/// A timestamp's own noise in nanoseconds.
const STAMP: f64 = 1_000.0;
/// What a clock's phase wanders in a second, in nanoseconds,
const WANDER: f64 = 300.0;
/// and its rate, in nanoseconds a second.
const RATE_WANDER: f64 = 15.0;
/// How fast a clock of which nothing is known may run, in nanoseconds a second.
const RATE_UNKNOWN: f64 = 200_000.0;
/// A sample so many deviations off, squared, is not believed,
const GATE: f64 = 25.0;
/// unless so many come in a row: then the clock has changed.
const INSIST: u32 = 3;

/// Misses are averaged over so many samples; if that many deviations remain, the rate has changed,
const LEAN: (f64, f64) = (4.0, 1.6);
/// by about so much, in nanoseconds a second.
const RATE_CHANGED: f64 = 30_000.0;

/// See the module. Times are in nanoseconds, rates in nanoseconds a second.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    at: u64,
    phase: f64,
    rate: f64,
    /// Variances of phase and rate, and what they have in common.
    var: [f64; 3],
    refused: u32,
    lean: f64,
}

impl Filter {
    /// From a first sample, which may be `doubt` off.
    pub(crate) fn new(at: u64, phase: f64, doubt: f64) -> Self {
        let mut filter = Self {
            at,
            phase,
            rate: 0.0,
            var: [0.0; 3],
            refused: 0,
            lean: 0.0,
        };
        filter.begin(phase, doubt);
        filter
    }

    fn begin(&mut self, phase: f64, doubt: f64) {
        self.phase = phase;
        self.var = [noise(doubt), RATE_UNKNOWN * RATE_UNKNOWN, 0.0];
        (self.refused, self.lean) = (0, 0.0);
    }

    /// A sample that may be `doubt` off.
    pub(crate) fn add(&mut self, at: u64, phase: f64, doubt: f64) {
        self.advance(at);
        let miss = phase - self.phase;
        if self.lean.abs() > LEAN.1 {
            self.var[1] += RATE_CHANGED * RATE_CHANGED;
            self.lean = 0.0;
        }
        let [own, rate, common] = self.var;
        let sum = own + noise(doubt);
        if miss * miss > GATE * sum {
            self.refused += 1;
            if self.refused >= INSIST {
                self.begin(phase, doubt);
            }
            return;
        }
        self.refused = 0;
        self.lean += (miss / sum.sqrt() - self.lean) / LEAN.0;
        let (gain, rate_gain) = (own / sum, common / sum);
        self.phase += gain * miss;
        self.rate += rate_gain * miss;
        self.var = [
            own * (1.0 - gain),
            rate - rate_gain * common,
            common * (1.0 - gain),
        ];
    }

    /// The phase is within these limits for certain.
    pub(crate) fn confine(&mut self, low: f64, high: f64) {
        self.phase = self.phase.min(high).max(low);
    }

    /// The phase at a later time.
    pub(crate) fn phase(&self, at: u64) -> f64 {
        self.phase + self.rate * seconds(self.at, at)
    }

    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    fn advance(&mut self, at: u64) {
        let dt = seconds(self.at, at);
        self.phase += self.rate * dt;
        self.at = at.max(self.at);
        let [own, rate, common] = self.var;
        let drift = RATE_WANDER * RATE_WANDER * dt;
        self.var = [
            own + 2.0 * dt * common + dt * dt * rate + WANDER * WANDER * dt + drift * dt * dt / 3.0,
            rate + drift,
            common + dt * rate + drift * dt / 2.0,
        ];
    }
}

fn noise(doubt: f64) -> f64 {
    STAMP * STAMP + doubt * doubt
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_phase_of_a_steady_clock_are_found() {
        let mut filter = Filter::new(0, 0.0, 0.0);
        for i in 1..=200u64 {
            filter.add(i * 100_000_000, 4_000.0 * i as f64, 0.0);
        }
        assert!(
            (filter.rate() - 40_000.0).abs() < 500.0,
            "{}",
            filter.rate()
        );
        assert!((filter.phase(21_000_000_000) - 840_000.0).abs() < 1_000.0);
    }

    #[test]
    fn one_wild_sample_moves_nothing_and_three_begin_anew() {
        let mut filter = Filter::new(0, 0.0, 0.0);
        for i in 1..=50u64 {
            filter.add(i * 100_000_000, 0.0, 0.0);
        }
        filter.add(5_100_000_000, 9e6, 0.0);
        assert!(filter.phase(5_100_000_000).abs() < 1_000.0);
        filter.add(5_200_000_000, 9e6, 0.0);
        filter.add(5_300_000_000, 9e6, 0.0);
        assert!((filter.phase(5_300_000_000) - 9e6).abs() < 1_000.0);
    }
}

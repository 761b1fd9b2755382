//! A smoothed round trip: exponentially weighted, 1/8 of each new sample (RFC 6298's gain).

use std::time::Duration;

/// The weight of a new sample is one over this.
const GAIN: u32 = 8;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmoothedRtt(Option<Duration>);

impl SmoothedRtt {
    /// Takes a sample.
    pub fn update(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            None => sample,
            Some(smoothed) => (smoothed * (GAIN - 1) + sample) / GAIN,
        });
    }

    /// The smoothed value; `None` before the first sample.
    pub const fn value(self) -> Option<Duration> {
        self.0
    }

    /// In milliseconds.
    pub fn millis(self) -> Option<f64> {
        self.0.map(|rtt| rtt.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_moves_it_by_an_eighth_and_a_change_is_followed() {
        let mut rtt = SmoothedRtt::default();
        assert_eq!(rtt.value(), None);
        rtt.update(Duration::from_millis(80));
        rtt.update(Duration::from_millis(160));
        assert_eq!(rtt.value(), Some(Duration::from_millis(90)));
        for _ in 0..40 {
            rtt.update(Duration::from_millis(20));
        }
        assert!(rtt.value().unwrap() < Duration::from_millis(21));
    }
}

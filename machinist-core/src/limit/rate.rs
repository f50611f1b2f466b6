//! Rates as people write them: `5/s`, `100/m`, `5/10s`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Maximum number of starts per second of a rate.
const MAX_RATE: f64 = 1e6;
/// Units of a period, from the longest.
const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A number of starts in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    pub(super) starts: u32,
    pub(super) period: Duration,
}

impl Rate {
    /// Creates a rate of `starts` in each `period`. No starts at all pause the tasks.
    ///
    /// # Errors
    /// The rate is not within one start in 30 days and a million in a second, in words for people.
    pub fn new(starts: u32, period: Duration) -> Result<Self, String> {
        let rate = Self { starts, period };
        let too_slow = starts > 0 && period / starts > Duration::from_secs(30 * 24 * 3600);
        if period.is_zero() || too_slow || f64::from(starts) / period.as_secs_f64() > MAX_RATE {
            return Err(format!(
                "{rate} is out of range; take one start in 30 days to a million in a second"
            ));
        }
        Ok(rate)
    }

    pub(crate) const fn per_second(starts: u32) -> Self {
        Self { starts, period: Duration::from_secs(1) }
    }

    /// Returns the time between two starts, rounded up, so that the rate is never exceeded; `None` if there are none.
    pub(crate) fn interval(self) -> Option<Duration> {
        let starts = (self.starts > 0).then_some(u128::from(self.starts))?;
        let nanos = self.period.as_nanos().div_ceil(starts);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Reads `5/s`, `100/m`, `1000/h`, `10/d` or, with a number before the unit, `5/10s`.
    ///
    /// # Errors
    /// The text is no rate, in words for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_rate(text)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&write_rate(*self))
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("{text:?} is no rate; write 5/s, 100/m, 1000/h, 10/d, or 5/10s");
    let (starts, period) = text.split_once('/').ok_or_else(wrong)?;
    let starts: u32 = starts.trim().parse().map_err(|_| wrong())?;
    let period = period.trim();
    let digits = period.find(|c: char| !c.is_ascii_digit()).unwrap_or(period.len());
    let (number, unit) = period.split_at(digits);
    let number: u64 = if number.is_empty() { 1 } else { number.parse().map_err(|_| wrong())? };
    let millis = match unit {
        "ms" if digits > 0 => Some(number),
        _ => UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, seconds)| number.checked_mul(seconds * 1000)),
    };
    Rate::new(starts, Duration::from_millis(millis.ok_or_else(wrong)?))
}

fn write_rate(rate: Rate) -> String {
    let (starts, millis) = (rate.starts, rate.period.as_millis());
    for (unit, seconds) in UNITS {
        let unit_millis = u128::from(seconds) * 1000;
        if millis > 0 && millis.is_multiple_of(unit_millis) {
            let number = millis / unit_millis;
            return if number == 1 { format!("{starts}/{unit}") } else { format!("{starts}/{number}{unit}") };
        }
    }
    format!("{starts}/{millis}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_written() {
        for text in ["5/s", "100/m", "1000/h", "10/d", "5/10s", "0/s", "1/30d", "3/250ms"] {
            assert_eq!(parse_rate(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_rate("60/60s").unwrap().to_string(), "60/m");
        for text in [
            "",
            "5",
            "5/",
            "/s",
            "-1/s",
            "5/x",
            "5/0s",
            "1/31d",
            "2000000/s",
            "5/ms",
            "5/99999999999999999999s",
        ] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}

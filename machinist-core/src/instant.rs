//! Instants as a caller has them: of several libraries, or as text.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock::Timestamp;

/// An instant that [`Signature::eta`](crate::Signature::eta) and [`Signature::expires_at`](crate::Signature::expires_at)
/// accept: a [`Timestamp`], a [`SystemTime`], an instant of `jiff` or, with the feature `chrono`, of `chrono`, or text after
/// RFC 3339.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an instant",
    note = "instants are `Timestamp`, `SystemTime`, `jiff::Timestamp`, `jiff::Zoned`, with the feature `chrono` \
            `chrono::DateTime`, and text like \"2026-11-20T23:37:14Z\""
)]
pub trait IntoInstant {
    /// Converts it to backend time.
    ///
    /// # Errors
    /// The text is not an instant, or the instant is too far away to be written.
    fn into_instant(self) -> Result<Timestamp, String>;
}

impl IntoInstant for Timestamp {
    fn into_instant(self) -> Result<Timestamp, String> {
        Ok(self)
    }
}

impl IntoInstant for SystemTime {
    fn into_instant(self) -> Result<Timestamp, String> {
        let micros = match self.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()),
            Err(before) => i64::try_from(before.duration().as_micros()).map(std::ops::Neg::neg),
        };
        micros.map(Timestamp::from_micros).map_err(|_| "the instant is too far away".to_owned())
    }
}

impl IntoInstant for jiff::Timestamp {
    fn into_instant(self) -> Result<Timestamp, String> {
        Ok(Timestamp::from_micros(self.as_microsecond()))
    }
}

impl IntoInstant for &jiff::Zoned {
    fn into_instant(self) -> Result<Timestamp, String> {
        self.timestamp().into_instant()
    }
}

impl IntoInstant for jiff::Zoned {
    fn into_instant(self) -> Result<Timestamp, String> {
        self.timestamp().into_instant()
    }
}

#[cfg(feature = "chrono")]
impl<Z: chrono::TimeZone> IntoInstant for chrono::DateTime<Z> {
    fn into_instant(self) -> Result<Timestamp, String> {
        Ok(Timestamp::from_micros(self.timestamp_micros()))
    }
}

impl IntoInstant for &str {
    fn into_instant(self) -> Result<Timestamp, String> {
        let instant: Result<jiff::Timestamp, _> = self.parse();
        let wrong = |_| format!("{self:?} is not an instant; write one like \"2026-11-20T23:37:14Z\"");
        instant.map_err(wrong)?.into_instant()
    }
}

impl IntoInstant for String {
    fn into_instant(self) -> Result<Timestamp, String> {
        self.as_str().into_instant()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_instant_has_many_forms() {
        let expected = Ok(Timestamp::from_micros(1_763_681_834_000_000));
        let system = UNIX_EPOCH + Duration::from_secs(1_763_681_834);
        let zoned: jiff::Zoned = "2025-11-21T00:37:14+01:00[Europe/Berlin]".parse().unwrap();
        assert_eq!(system.into_instant(), expected);
        assert_eq!((&zoned).into_instant(), expected);
        assert_eq!(zoned.timestamp().into_instant(), expected);
        assert_eq!("2025-11-20T23:37:14Z".into_instant(), expected);
        assert_eq!("2025-11-21T00:37:14+01:00".to_owned().into_instant(), expected);
        assert_eq!(
            (UNIX_EPOCH - Duration::from_secs(1)).into_instant(),
            Ok(Timestamp::from_micros(-1_000_000))
        );
        #[cfg(feature = "chrono")]
        {
            let berlin = chrono::FixedOffset::east_opt(3600).unwrap();
            let instant = chrono::DateTime::from_timestamp(1_763_681_834, 0).unwrap();
            assert_eq!(instant.into_instant(), expected);
            assert_eq!(instant.with_timezone(&berlin).into_instant(), expected);
        }
        assert!("tomorrow".into_instant().unwrap_err().contains("\"tomorrow\" is not an instant"));
        assert!("2025-11-20".into_instant().is_err());
    }
}

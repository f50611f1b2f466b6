//! Name/value pairs of a message: what wire version 2 adds.
//!
//! New data about a task becomes a pair and no separate header, so that the wire changes once: an old worker verifies
//! pairs that it does not know, and forwards them in every retry. The text of a list of pairs has one form only. What
//! is read is therefore written as the same bytes, and signing the text signs the pairs.

use std::collections::BTreeMap;

use crate::{clock::Timestamp, flow::StepPlace, id::TaskId};

/// Maximum number of pairs of a message.
const MAX_PAIRS: usize = 64;
/// Maximum length of a name, in bytes.
const MAX_NAME: usize = 64;
/// Maximum length of a value, in bytes.
const MAX_VALUE: usize = 4096;

/// Beginning of the name of each pair that is a label.
const LABEL: &str = "label.";
/// Name of the pair with the instant at which the first sender issued the call, in microseconds since the Unix epoch, of a
/// task that repeats another.
const FIRST_ISSUED: &str = "first.issued";
/// Name of the pair with the id of the workflow's root. Every message of a workflow has it.
const ROOT: &str = "flow.root";
/// Name of the pair with the path of the task in its workflow; the root has none.
const PATH: &str = "flow.path";
/// Name of the pair that says that the task waits for a join.
const AWAITS: &str = "flow.awaits";
/// Name of the pair with the instant, in microseconds since the Unix epoch, since which the join and the records of members
/// have been missing.
const LOST_SINCE: &str = "flow.lost";
/// Maximum number of labels of a task that is sent.
const MAX_LABELS: usize = 8;
/// Maximum length of the key of a label, in bytes.
const MAX_LABEL_KEY: usize = 32;
/// Maximum length of the value of a label, in bytes.
const MAX_LABEL_VALUE: usize = 128;

/// Name/value pairs of a message, sorted by name. Names that this version does not know are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pairs(BTreeMap<String, String>);

/// Error of a text that is not a list of pairs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairsError {
    #[error("it is not `NAME=LENGTH:VALUE`, separated by commas, at byte {0}")]
    Form(usize),
    #[error("the name {0:?} is not 1 to {MAX_NAME} letters, digits, `.`, `_` or `-`")]
    Name(String),
    #[error("the value of {name:?} has {length} bytes, and the maximum is {MAX_VALUE}")]
    Value { name: String, length: usize },
    #[error(
        "the name {name:?} comes after {before:?}: names are sorted by their bytes, and each occurs once"
    )]
    Order { before: String, name: String },
    #[error("it has more than {MAX_PAIRS} pairs")]
    Count,
}

impl Pairs {
    /// Returns `true` if there are none: then the message says nothing about pairs, and is of version 1.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Formats the pairs as they are sent and signed; `None` if there are none.
    pub(crate) fn to_text(&self) -> Option<String> {
        use std::fmt::Write;
        let mut out = String::new();
        for (name, value) in &self.0 {
            let comma = if out.is_empty() { "" } else { "," };
            // INVARIANT: writing to a String does not fail.
            let _ = write!(out, "{comma}{name}={}:{value}", value.len());
        }
        (!out.is_empty()).then_some(out)
    }

    /// Reads pairs. Accepts exactly what [`to_text`](Self::to_text) writes.
    pub(crate) fn parse(text: &str) -> Result<Self, PairsError> {
        let mut pairs: BTreeMap<String, String> = BTreeMap::new();
        let mut rest = text;
        loop {
            let form = |rest: &str| PairsError::Form(text.len() - rest.len());
            let (name, value, after) = split_pair(rest).ok_or_else(|| form(rest))?;
            check(name, value)?;
            if let Some((before, _)) = pairs.last_key_value().filter(|(before, _)| before.as_str() >= name) {
                let before = String::clone(before);
                return Err(PairsError::Order { before, name: name.to_owned() });
            }
            if pairs.len() == MAX_PAIRS {
                return Err(PairsError::Count);
            }
            pairs.insert(name.to_owned(), value.to_owned());
            if after.is_empty() {
                return Ok(Self(pairs));
            }
            rest = after.strip_prefix(',').ok_or_else(|| form(after))?;
        }
    }

    /// Makes labels pairs.
    ///
    /// # Errors
    /// Description of a label that cannot be sent.
    pub(crate) fn of_labels(labels: BTreeMap<String, String>) -> Result<Self, String> {
        if labels.len() > MAX_LABELS {
            return Err(format!("it has {} labels, and the maximum is {MAX_LABELS}", labels.len()));
        }
        let pair = |(key, value): (String, String)| {
            check_label(&key, &value)?;
            Ok((format!("{LABEL}{key}"), value))
        };
        labels.into_iter().map(pair).collect::<Result<_, String>>().map(Self)
    }

    /// Returns the instant at which the first sender issued the call, if the task repeats another.
    pub(crate) fn first_issued(&self) -> Option<Timestamp> {
        self.0.get(FIRST_ISSUED)?.parse().ok().map(Timestamp::from_micros)
    }

    /// Adds the instant at which the first sender issued the call, unless it is there already.
    pub(crate) fn with_first_issued(mut self, at: Timestamp) -> Self {
        if self.0.len() < MAX_PAIRS {
            self.0.entry(FIRST_ISSUED.to_owned()).or_insert_with(|| at.as_micros().to_string());
        }
        self
    }

    /// Returns `true` if the message belongs to a workflow.
    pub(crate) fn are_of_workflow(&self) -> bool {
        self.0.contains_key(ROOT)
    }

    /// Returns the place of the task in its workflow.
    pub(crate) fn place(&self) -> Option<StepPlace> {
        let root = TaskId::parse(self.0.get(ROOT)?).ok()?;
        StepPlace::parse(root, self.0.get(PATH).map_or("", String::as_str))
    }

    /// Adds the place of the task in its workflow.
    pub(crate) fn with_place(mut self, place: &StepPlace) -> Self {
        self.0.insert(ROOT.to_owned(), place.root_id().to_string());
        if !place.is_root() {
            self.0.insert(PATH.to_owned(), place.path().to_owned());
        }
        self
    }

    /// Returns `true` if the task waits for a join.
    pub(crate) fn awaits(&self) -> bool {
        self.0.contains_key(AWAITS)
    }

    /// Says that the task waits for a join.
    pub(crate) fn awaiting(mut self) -> Self {
        self.0.insert(AWAITS.to_owned(), "1".to_owned());
        self
    }

    /// Returns the instant since which the join and the records of members have been missing.
    pub(crate) fn lost_since(&self) -> Option<Timestamp> {
        self.0.get(LOST_SINCE)?.parse().ok().map(Timestamp::from_micros)
    }

    /// Sets or removes the instant since which the join and the records of members have been missing.
    pub(crate) fn with_lost_since(mut self, since: Option<Timestamp>) -> Self {
        match since {
            Some(since) => self.0.insert(LOST_SINCE.to_owned(), since.as_micros().to_string()),
            None => self.0.remove(LOST_SINCE),
        };
        self
    }

    /// Returns the labels by key.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(LABEL)?, value.as_str())))
    }
}

/// Splits the first pair off a text: its name, its value and the rest.
fn split_pair(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('=')?;
    let (length, rest) = rest.split_once(':')?;
    // One form for each number: `07` and `+7` are other bytes for 7.
    let plain = length == "0" || (!length.starts_with('0') && length.bytes().all(|b| b.is_ascii_digit()));
    let length = length.parse().ok().filter(|_| plain)?;
    let (value, after) = rest.split_at_checked(length)?;
    Some((name, value, after))
}

fn check(name: &str, value: &str) -> Result<(), PairsError> {
    if !is_plain(name, MAX_NAME) {
        return Err(PairsError::Name(name.chars().take(MAX_NAME).collect()));
    }
    if value.len() > MAX_VALUE {
        return Err(PairsError::Value { name: name.to_owned(), length: value.len() });
    }
    Ok(())
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    if !is_plain(key, MAX_LABEL_KEY) {
        return Err(format!(
            "the key of label {:?} is not 1 to {MAX_LABEL_KEY} letters, digits, `.`, `_` or `-`",
            key.chars().take(MAX_LABEL_KEY).collect::<String>()
        ));
    }
    if value.len() > MAX_LABEL_VALUE {
        let length = value.len();
        return Err(format!("label {key:?} has {length} bytes, and the maximum is {MAX_LABEL_VALUE}"));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("label {key:?} contains a control character"));
    }
    Ok(())
}

fn is_plain(text: &str, max: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=max).contains(&text.len()) && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        Pairs::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn a_list_of_pairs_has_one_form() {
        let text = "group=1:7,label.team=5:sueß, future=0:";
        assert_eq!(error(text), "the name \" future\" is not 1 to 64 letters, digits, `.`, `_` or `-`");
        let text = "future=0:,group=3:a,b,label.team=5:sueß";
        assert_eq!(Pairs::parse(text).unwrap().to_text().unwrap(), text);
        for (wrong, at) in [
            ("", 0),
            ("a", 0),
            ("a=1", 0),
            ("a=2:x", 0),
            ("a=01:x", 0),
            ("a=+1:x", 0),
            ("a=:x", 0),
            ("a=-1:x", 0),
            ("a=1:ß", 0),
            ("a=99999999999999999999999:x", 0),
            ("a=1:x,", 6),
            ("a=1:xb=1:y", 5),
            ("a=1:x;b=1:y", 5),
        ] {
            assert_eq!(Pairs::parse(wrong), Err(PairsError::Form(at)), "{wrong}");
        }
        assert!(error("b=1:x,a=1:y").contains("sorted"));
        assert!(error("a=1:x,a=1:y").contains("each occurs once"));
        assert!(error("=1:x").contains("the name \"\""));
    }

    #[test]
    fn pairs_are_bounded() {
        let name = "n".repeat(MAX_NAME);
        assert!(Pairs::parse(&format!("{name}=0:")).is_ok());
        assert!(error(&format!("{name}n=0:")).contains("is not 1 to 64"));
        let value = |length: usize| format!("a={length}:{}", "x".repeat(length));
        assert!(Pairs::parse(&value(MAX_VALUE)).is_ok());
        assert_eq!(
            error(&value(MAX_VALUE + 1)),
            "the value of \"a\" has 4097 bytes, and the maximum is 4096"
        );
        let many = |count: usize| (0..count).map(|n| format!("p{n:03}=0:")).collect::<Vec<_>>().join(",");
        assert!(Pairs::parse(&many(MAX_PAIRS)).is_ok());
        assert_eq!(error(&many(MAX_PAIRS + 1)), "it has more than 64 pairs");
    }

    #[test]
    fn labels_are_few_and_short() {
        let of = |key: &str, value: &str| Pairs::of_labels([(key.to_owned(), value.to_owned())].into());
        let pairs = of("team", "a=1:x, süß").unwrap();
        assert_eq!(pairs.labels().collect::<Vec<_>>(), [("team", "a=1:x, süß")]);
        assert_eq!(Pairs::parse("z=1:x,z.label.a=0:").unwrap().labels().count(), 0);
        for (key, value, says) in [
            ("", "x", "the key of label \"\""),
            ("te am", "x", "letters, digits"),
            (&"k".repeat(33), "x", "1 to 32"),
            ("team", "a\nb", "control character"),
            ("team", &"x".repeat(129), "129 bytes, and the maximum is 128"),
        ] {
            let error = of(key, value).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let labels = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
        assert!(Pairs::of_labels(labels(8)).is_ok());
        assert_eq!(Pairs::of_labels(labels(9)).unwrap_err(), "it has 9 labels, and the maximum is 8");
    }

    proptest! {
        #[test]
        fn pairs_round_trip(pairs in proptest::collection::btree_map("[a-zA-Z0-9._-]{1,4}", "\\PC{0,9}", 1..6)) {
            let pairs = Pairs(pairs);
            prop_assert_eq!(Pairs::parse(&pairs.to_text().unwrap()), Ok(pairs));
        }

        /// What is read is written as the same bytes: so the signature covers what was read.
        #[test]
        fn what_is_read_is_what_is_written(text in "([ab]=[012]:[a:=,]{0,2},?){1,3}") {
            if let Ok(pairs) = Pairs::parse(&text) {
                prop_assert_eq!(pairs.to_text().unwrap(), text);
            }
        }
    }
}

//! Switches that people set for all workers, as this worker has last read and believed them: disabled tasks and paused
//! queues.
//!
//! A worker goes by the setting with the greatest number. Where the backend has lost a setting or shows an earlier one, the
//! worker writes the one that it knows back.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    backend::Commit,
    id::{QueueName, TaskName},
    record::{Facts, Newest, Switch, newest, set_switch, switches},
    security::{SwitchSetting, Trust},
};

/// Switches that this worker knows.
#[derive(Debug, Default)]
pub(super) struct Switches(Mutex<SwitchBook>);

#[derive(Debug, Default)]
struct SwitchBook {
    known: HashMap<Switch, (SwitchSetting, Bytes)>,
    /// Settings that are not believed, and were logged.
    doubted: HashSet<Bytes>,
}

impl Switches {
    fn book(&self) -> MutexGuard<'_, SwitchBook> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the control record says. Returns the commits that write back what it has lost.
    pub(super) fn read(&self, facts: &Facts, trust: &Trust) -> Vec<Commit> {
        let mut book = self.book();
        let mut stored: HashMap<Switch, Bytes> =
            switches(facts).map(|(switch, stored)| (switch, stored.clone())).collect();
        let mut lost = Vec::new();
        for (switch, (known, bytes)) in &book.known {
            match stored.get(switch) {
                None => lost.push(set_switch(switch, bytes, None)),
                Some(read) if read == bytes => drop(stored.remove(switch)),
                Some(read) => {
                    let earlier = trust.read_switch(&switch.fact(), read).is_ok_and(|setting| {
                        newest(Some(known.number), Some(setting.number)) == Newest::Known
                    });
                    if earlier {
                        lost.push(set_switch(switch, bytes, Some(read)));
                        stored.remove(switch);
                    }
                }
            }
        }
        for (switch, read) in stored {
            match trust.read_switch(&switch.fact(), &read) {
                Ok(setting) => drop(book.known.insert(switch, (setting, read))),
                Err(why) => {
                    if book.doubted.insert(read) {
                        tracing::warn!(switch = %switch.fact(), why, "a switch for all workers is not obeyed");
                    }
                }
            }
        }
        lost
    }

    /// Returns the task names that are disabled.
    pub(super) fn disabled_tasks(&self) -> HashSet<TaskName> {
        let task = |switch: &Switch| match switch {
            Switch::Task(task) => Some(task.clone()),
            Switch::Queue(_) => None,
        };
        self.off(task).collect::<Vec<_>>().into_iter().collect()
    }

    /// Returns the queues that are paused.
    pub(super) fn paused_queues(&self) -> BTreeSet<QueueName> {
        let queue = |switch: &Switch| match switch {
            Switch::Queue(queue) => Some(queue.clone()),
            Switch::Task(_) => None,
        };
        self.off(queue).collect()
    }

    fn off<T>(&self, subject: impl Fn(&Switch) -> Option<T>) -> impl Iterator<Item = T> {
        let book = self.book();
        let off = book.known.iter().filter(|(_, (setting, _))| setting.off);
        off.filter_map(|(switch, _)| subject(switch)).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Timestamp,
        record::set_switch,
        sign::{Algorithm, Key},
    };

    fn trust() -> Trust {
        let key = Key::with_secret(Algorithm::HmacSha256, "k", &[7; 32]).unwrap();
        Trust::new(Some(key.into()), false, None)
    }

    fn stored(switch: &Switch, off: bool, number: i64) -> Bytes {
        let setting = SwitchSetting { off, number, at: Timestamp::from_micros(number) };
        trust().sign_switch(&switch.fact(), setting).unwrap()
    }

    fn facts(switch: &Switch, stored: &Bytes) -> Facts {
        let mut facts = Facts::new();
        assert!(set_switch(switch, stored, None).apply(&mut facts));
        facts
    }

    #[test]
    fn an_earlier_setting_that_is_written_back_changes_nothing_and_is_replaced() {
        let switch = Switch::Queue(QueueName::parse("mail").unwrap());
        let (resumed, paused) = (stored(&switch, false, 1), stored(&switch, true, 2));
        let switches = Switches::default();
        assert!(switches.read(&facts(&switch, &resumed), &trust()).is_empty());
        assert!(switches.paused_queues().is_empty());
        assert!(switches.read(&facts(&switch, &paused), &trust()).is_empty());
        let mut replayed = facts(&switch, &resumed);
        let lost = switches.read(&replayed, &trust());
        assert_eq!(switches.paused_queues().len(), 1);
        assert!(lost[0].apply(&mut replayed));
        assert_eq!(replayed.get(&switch.fact()), Some(&paused));
    }

    #[test]
    fn a_lost_setting_is_written_back_and_a_forged_one_is_not_obeyed() {
        let switch = Switch::Task(TaskName::parse("add").unwrap());
        let switches = Switches::default();
        let disabled = stored(&switch, true, 1);
        switches.read(&facts(&switch, &disabled), &trust());
        let mut flushed = Facts::new();
        let lost = switches.read(&flushed, &trust());
        assert!(lost[0].apply(&mut flushed));
        assert_eq!(flushed.get(&switch.fact()), Some(&disabled));
        let forged = Bytes::from(std::str::from_utf8(&disabled).unwrap().replace("true", "false"));
        assert!(switches.read(&facts(&switch, &forged), &trust()).is_empty());
        assert!(switches.disabled_tasks().contains(&TaskName::parse("add").unwrap()));
    }
}

//! Values with numbers, so that a state of a search is a few numbers. Only for tests.

use std::{collections::HashMap, hash::Hash};

/// Values with numbers.
#[derive(Debug)]
pub(crate) struct Numbered<T> {
    values: Vec<T>,
    numbers: HashMap<T, u16>,
}

impl<T: Clone + Eq + Hash> Numbered<T> {
    /// Creates an empty list.
    pub(crate) fn new() -> Self {
        Self { values: Vec::new(), numbers: HashMap::new() }
    }

    /// Returns the number of a value, and adds the value if it is new.
    pub(crate) fn number(&mut self, value: &T) -> u16 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = u16::try_from(self.values.len()).unwrap();
        self.values.push(value.clone());
        self.numbers.insert(value.clone(), number);
        number
    }

    /// Returns the value of a number.
    pub(crate) fn get(&self, number: u16) -> &T {
        &self.values[usize::from(number)]
    }
}

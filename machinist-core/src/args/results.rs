//! Results: the wire form of a handler's return value, and the types that the caller reads.

use super::{Arg, Misfit, Results, WireArg};

/// Return value of a task: `()`, one [`WireArg`] type, a tuple of up to eight (several results), or [`Results`]
/// unchanged.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the result of a task: wrap your own types in `Json<T>`, or derive `WireArg` for them",
    label = "not a result of a task",
    note = "a task returns `()`, one `WireArg` type, a tuple of up to eight, or `Results`"
)]
pub trait IntoResults {
    /// Converts it to results on the wire.
    ///
    /// # Errors
    /// A value has no form on the wire.
    fn into_results(self) -> Result<Results, Misfit>;

    /// Returns the names of the types on the wire; `None` if they are not known.
    #[doc(hidden)]
    fn type_names() -> Option<Vec<&'static str>> {
        None
    }
}

/// Type as which the results of a task can be read; the counterpart of [`IntoResults`].
///
/// `()` accepts any results. Every other type needs the exact number of results, except that an `Option` at the end may
/// be missing.
#[diagnostic::on_unimplemented(
    message = "the results of a task cannot be read as `{Self}`: wrap your own types in `Json<T>`, or derive `WireArg` for them",
    label = "not a result of a task"
)]
pub trait FromResults: Sized {
    /// Reads the results.
    ///
    /// # Errors
    /// The number of results or one of their types does not fit; the text says which.
    fn from_results(results: Results) -> Result<Self, Misfit>;
}

impl IntoResults for Results {
    fn into_results(self) -> Result<Results, Misfit> {
        Ok(self)
    }
}

impl FromResults for Results {
    fn from_results(results: Results) -> Result<Self, Misfit> {
        Ok(results)
    }
}

impl IntoResults for () {
    fn type_names() -> Option<Vec<&'static str>> {
        Some(Vec::new())
    }

    fn into_results(self) -> Result<Results, Misfit> {
        Ok(Results::default())
    }
}

impl FromResults for () {
    fn from_results(_: Results) -> Result<Self, Misfit> {
        Ok(())
    }
}

#[diagnostic::do_not_recommend]
impl<T: WireArg> IntoResults for T {
    fn type_names() -> Option<Vec<&'static str>> {
        Some(vec![T::TYPE])
    }

    fn into_results(self) -> Result<Results, Misfit> {
        (self,).into_results()
    }
}

#[diagnostic::do_not_recommend]
impl<T: WireArg> FromResults for T {
    fn from_results(results: Results) -> Result<Self, Misfit> {
        <(T,)>::from_results(results).map(|(value,)| value)
    }
}

macro_rules! tuples {
    ($($count:literal: $($t:ident)*;)*) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($t: WireArg),*> IntoResults for ($($t,)*) {
            fn type_names() -> Option<Vec<&'static str>> {
                Some(vec![$($t::TYPE),*])
            }

            fn into_results(self) -> Result<Results, Misfit> {
                #[allow(non_snake_case)]
                let ($($t,)*) = self;
                let mut results = Vec::with_capacity($count);
                $(results.push(write($t, results.len())?);)*
                Ok(Results(results))
            }
        }

        #[diagnostic::do_not_recommend]
        impl<$($t: WireArg),*> FromResults for ($($t,)*) {
            fn from_results(results: Results) -> Result<Self, Misfit> {
                let mut reader = ResultReader::expecting($count, results)?;
                Ok(($(reader.next::<$t>()?,)*))
            }
        }
    )*};
}

tuples! {
    1: T1;
    2: T1 T2;
    3: T1 T2 T3;
    4: T1 T2 T3 T4;
    5: T1 T2 T3 T4 T5;
    6: T1 T2 T3 T4 T5 T6;
    7: T1 T2 T3 T4 T5 T6 T7;
    8: T1 T2 T3 T4 T5 T6 T7 T8;
}

fn write<T: WireArg>(value: T, index: usize) -> Result<Arg, Misfit> {
    Arg::of(value).map_err(|e| e.within(format_args!("result {}", index + 1)))
}

/// Results that are read one by one.
struct ResultReader {
    results: std::vec::IntoIter<Arg>,
    position: usize,
    count: usize,
}

impl ResultReader {
    fn expecting(expected: usize, Results(results): Results) -> Result<Self, Misfit> {
        let count = results.len();
        if count > expected {
            return Err(Misfit::new(format_args!("expected results: {expected}, got {count}")));
        }
        Ok(Self { results: results.into_iter(), position: 0, count })
    }

    fn next<T: WireArg>(&mut self) -> Result<T, Misfit> {
        self.position += 1;
        let Some(result) = self.results.next() else {
            let missing = || {
                Misfit::new(format_args!(
                    "result {} ({}) is missing: the number of results is {}",
                    self.position,
                    T::TYPE,
                    self.count
                ))
            };
            return T::absent().ok_or_else(missing);
        };
        T::from_wire(result.value).map_err(|e| e.within(format_args!("result {}", self.position)))
    }
}

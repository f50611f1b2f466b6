//! Values arrive unchanged through both codecs, and values that do not fit are refused with a reason.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::task::TaskDef;

/// Writes a value, passes it through both codecs and reads it back.
fn round_trip<T: WireArg>(value: T) -> T {
    let arg = Arg::of(value).unwrap();
    let through_json: Vec<Arg> = serde_json::from_str(&serde_json::to_string(&[&arg]).unwrap()).unwrap();
    let through_msgpack: Vec<Arg> =
        rmp_serde::from_slice(&rmp_serde::to_vec_named(&[&arg]).unwrap()).unwrap();
    assert_eq!(through_json, std::slice::from_ref(&arg));
    assert_eq!(through_msgpack, std::slice::from_ref(&arg));
    T::from_wire(arg.value).unwrap()
}

/// Returns the error of a value that does not fit.
fn refused<T: WireArg + std::fmt::Debug>(value: Value) -> String {
    T::from_wire(value).unwrap_err().to_string()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Options {
    width: u64,
    tags: BTreeMap<String, Option<f64>>,
}

#[test]
fn extreme_values_survive() {
    macro_rules! extremes {
        ($($t:ty),*) => {$(
            for value in [<$t>::MIN, <$t>::MAX] {
                assert_eq!(round_trip(value), value);
                assert_eq!(round_trip(vec![value]), [value]);
            }
        )*};
    }
    extremes!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, f32, f64);
    for value in ["", "grüße <&> \"q\" \n \u{2028} 😀", "\0"] {
        assert_eq!(round_trip(value.to_owned()), value);
    }
    for value in [-0.0, f64::MIN_POSITIVE, 5e-324, 3.0] {
        assert_eq!(round_trip(value).to_bits(), value.to_bits());
    }
    let nothing: [bool; 0] = [];
    assert_eq!(round_trip(Vec::<bool>::new()), nothing);
    assert_eq!(round_trip(None::<i64>), None);
    assert_eq!(round_trip(vec![Some(1_u8), None]), [Some(1), None]);
    assert_eq!(round_trip(vec![vec![0_u8, 255], vec![]]), [vec![0, 255], vec![]]);
    let value = json!({ "nested": [null, { "ü": [u64::MAX, i64::MIN, 0.1] }] });
    assert_eq!(round_trip(value.clone()), value);
}

#[test]
fn types_have_the_names_of_machinery() {
    fn name<T: WireArg>() -> &'static str {
        T::TYPE
    }
    let names =
        [name::<bool>(), name::<i8>(), name::<u64>(), name::<f32>(), name::<String>(), name::<Value>()];
    assert_eq!(names, ["bool", "int8", "uint64", "float32", "string", "json"]);
    let names = [name::<Vec<i64>>(), name::<Vec<u8>>(), name::<Vec<String>>(), name::<Option<f64>>()];
    assert_eq!(names, ["[]int64", "[]byte", "[]string", "float64"]);
    assert_eq!([name::<Vec<Vec<i64>>>(), name::<Vec<Json<Options>>>()], ["json", "json"]);
}

#[test]
fn values_that_fit_without_loss_are_read() {
    assert_eq!(u8::from_wire(json!(3.0)), Ok(3));
    assert_eq!(i64::from_wire(json!(-3.0)), Ok(-3));
    assert_eq!(f64::from_wire(json!(3)), Ok(3.0));
    assert_eq!(f32::from_wire(json!(-3)), Ok(-3.0));
    assert_eq!(Vec::<f64>::from_wire(json!([0.1, 2])), Ok(vec![0.1, 2.0]));
    assert_eq!(Vec::<i64>::from_wire(Value::Null), Ok(vec![]));
    assert_eq!(Vec::<u8>::from_wire(Value::Null), Ok(vec![]));
    assert_eq!(Vec::<u8>::from_wire(json!("AQL/")), Ok(vec![1, 2, 255]));
    assert_eq!(Vec::<u8>::from_wire(json!("aGVsbG8=")), Ok(b"hello".to_vec()));
    assert_eq!(Vec::<u8>::from_wire(json!("aGVsbG8")), Ok(b"hello".to_vec()));
    assert_eq!(Vec::<u8>::from_wire(json!([1, 2, 255])), Ok(vec![1, 2, 255]));
    assert_eq!(Option::<String>::from_wire(Value::Null), Ok(None));
}

#[test]
fn a_number_whose_spelling_counts_is_read_as_a_number() {
    assert_eq!(f64::from_wire(json!("1.10")), Ok(1.1));
    assert_eq!(f32::from_wire(json!("1e2")), Ok(100.0));
    assert_eq!(i64::from_wire(json!("1e3")), Ok(1000));
    assert_eq!(u8::from_wire(json!("7")), Ok(7));
    for text in ["", "x", " 1", "1 ", "0x1", "+1", "12345678901234567890123"] {
        refused::<i64>(json!(text));
    }
    assert_eq!(String::from_wire(json!("1.10")), Ok("1.10".to_owned()));
}

#[test]
fn values_that_do_not_fit_are_refused_with_a_reason() {
    assert_eq!(refused::<u8>(json!(256)), "expected uint8, got 256");
    assert_eq!(refused::<u64>(json!(-1)), "expected uint64, got -1");
    assert_eq!(refused::<i64>(json!(u64::MAX)), "expected int64, got 18446744073709551615");
    assert_eq!(refused::<i64>(json!(2.5)), "expected int64, got 2.5");
    // A float cannot distinguish this whole number from the next ones.
    assert_eq!(refused::<i64>(json!(9_007_199_254_740_992.0)), "expected int64, got 9007199254740992.0");
    assert_eq!(refused::<f32>(json!(1e300)), "expected float32, got 1e+300");
    assert_eq!(refused::<bool>(json!("true")), "expected bool, got \"true\"");
    assert_eq!(refused::<String>(Value::Null), "expected string, got null");
    assert_eq!(refused::<Vec<i64>>(json!([1, "x"])), "item 2: expected int64, got \"x\"");
    assert_eq!(refused::<Vec<i64>>(json!(1)), "expected a list ([]int64), got 1");
    assert_eq!(refused::<Vec<u8>>(json!("%")), "expected base64 text ([]byte), got \"%\"");
    assert_eq!(refused::<Vec<u8>>(json!([256])), "expected base64 text ([]byte), got [256]");
    assert_eq!(refused::<Json<Options>>(json!({ "width": 1 })), "missing field `tags`");
}

#[test]
fn values_without_a_form_on_the_wire_are_not_sent() {
    const MEAN: TaskDef<(String, Vec<f64>), ()> = TaskDef::new("mean");
    const SIZES: TaskDef<Json<BTreeMap<Vec<u8>, u8>>, ()> = TaskDef::new("sizes");
    let reason = |parts: crate::signature::SignatureParts| parts.unsendable.unwrap();
    assert_eq!(
        reason(MEAN.call(("a", vec![0.0, f64::NAN])).parts),
        "argument 2: item 2: NaN has no form on the wire"
    );
    let sizes = Json(BTreeMap::from([(vec![1], 1)]));
    assert_eq!(reason(SIZES.call(sizes).parts), "argument 1: key must be a string");
    assert!(MEAN.call(("a", vec![0.0])).parts.unsendable.is_none());
}

#[test]
fn a_call_takes_the_declared_arguments() {
    fn values<R>(signature: crate::Signature<R>) -> Value {
        signature.parts.args.into_iter().map(|arg| json!([arg.kind, arg.value])).collect()
    }
    const NONE: TaskDef<(), ()> = TaskDef::new("none");
    const ONE: TaskDef<u64, ()> = TaskDef::new("one");
    const TEXT: TaskDef<String, ()> = TaskDef::new("text");
    const MIXED: TaskDef<(String, Option<u8>, Rest<u8>), ()> = TaskDef::new("mixed");
    assert_eq!(values(NONE.call(())), json!([]));
    assert_eq!(values(ONE.call(u64::MAX)), json!([["uint64", u64::MAX]]));
    assert_eq!(values(TEXT.call("ü")), json!([["string", "ü"]]));
    let mixed = values(MIXED.call(("ü", None, vec![1, 2])));
    assert_eq!(mixed, json!([["string", "ü"], ["uint8", null], ["uint8", 1], ["uint8", 2]]));
}

#[test]
fn results_are_read_as_declared() {
    fn results(results: impl IntoResults) -> Results {
        results.into_results().unwrap()
    }
    let two = || results((7_i64, "seven".to_owned()));
    assert_eq!(FromResults::from_results(two()), Ok((7_i64, "seven".to_owned())));
    assert_eq!(FromResults::from_results(two()), Ok(two()));
    assert_eq!(FromResults::from_results(two()), Ok(()));
    assert_eq!(FromResults::from_results(two()), Ok((7_i64, "seven".to_owned(), None::<bool>)));
    assert_eq!(FromResults::from_results(results(7_i64)), Ok(7_i64));
    assert_eq!(FromResults::from_results(results(())), Ok(()));
    assert_eq!(FromResults::from_results(results((1_u8, 2_u8, 3_u8, 4_u8))), Ok((1_u8, 2_u8, 3_u8, 4_u8)));

    fn refused<T: FromResults + std::fmt::Debug>(results: Results) -> String {
        T::from_results(results).unwrap_err().to_string()
    }
    assert_eq!(refused::<i64>(two()), "expected results: 1, got 2");
    assert_eq!(refused::<i64>(results(())), "result 1 (int64) is missing: the number of results is 0");
    assert_eq!(refused::<(i64, i64)>(two()), "result 2: expected int64, got \"seven\"");
    let nan = (1.0, f64::NAN).into_results().unwrap_err().to_string();
    assert_eq!(nan, "result 2: NaN has no form on the wire");
}

/// Floats that are numbers.
fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("a number", |float| float.is_finite())
}

fn options() -> impl Strategy<Value = Options> {
    let tags = prop::collection::btree_map(any::<String>(), prop::option::of(number()), 0..4);
    (any::<u64>(), tags).prop_map(|(width, tags)| Options { width, tags })
}

proptest! {
    #[test]
    fn every_value_survives(
        integers in any::<(i64, u64, Vec<i64>, Vec<u64>, i8, u32)>(),
        floats in prop::collection::vec(number(), 0..4),
        text in any::<(String, Vec<String>, Option<String>)>(),
        bytes in any::<Vec<u8>>(),
        flags in any::<(bool, Vec<Option<bool>>)>(),
        options in options(),
    ) {
        let (a, b, c, d, e, f) = integers;
        prop_assert_eq!((round_trip(a), round_trip(b), round_trip(e), round_trip(f)), (a, b, e, f));
        prop_assert_eq!((round_trip(c.clone()), round_trip(d.clone())), (c, d));
        prop_assert_eq!(round_trip(floats.clone()), floats);
        let (a, b, c) = text;
        prop_assert_eq!((round_trip(a.clone()), round_trip(b.clone()), round_trip(c.clone())), (a, b, c));
        prop_assert_eq!(round_trip(bytes.clone()), bytes);
        prop_assert_eq!((round_trip(flags.0), round_trip(flags.1.clone())), flags);
        prop_assert_eq!(round_trip(Json(options.clone())).0, options);
    }

    #[test]
    fn single_floats_survive(float in any::<f32>().prop_filter("a number", |float| float.is_finite())) {
        prop_assert_eq!(round_trip(float).to_bits(), float.to_bits());
    }
}

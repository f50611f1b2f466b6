//! Types with a wire form, and how each is written and read.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Number, Value};

use super::wire::{Misfit, WireArg};

/// Any serde type as an argument, a result, or an item of a list.
///
/// # Examples
/// ```
/// use machinist_core::{Json, TaskDef, TaskError};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Options {
///     width: u32,
/// }
///
/// const RESIZE: TaskDef<(String, Json<Options>), ()> = TaskDef::new("resize");
///
/// async fn resize(path: String, Json(options): Json<Options>) -> Result<(), TaskError> {
///     println!("{path} to {}", options.width);
///     Ok(())
/// }
///
/// let signature = RESIZE.call(("cat.png", Json(Options { width: 640 })));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Json<T>(pub T);

impl<T: Serialize + DeserializeOwned + Send + 'static> WireArg for Json<T> {
    const TYPE: &'static str = "json";

    fn into_wire(self) -> Result<Value, Misfit> {
        serde_json::to_value(self.0).map_err(Misfit::new)
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        serde_json::from_value(value).map(Self).map_err(Misfit::new)
    }
}

impl WireArg for Value {
    const TYPE: &'static str = "json";

    fn into_wire(self) -> Result<Value, Misfit> {
        Ok(self)
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        Ok(value)
    }
}

impl WireArg for bool {
    const TYPE: &'static str = "bool";
    const LIST_TYPE: &'static str = "[]bool";

    fn into_wire(self) -> Result<Value, Misfit> {
        Ok(self.into())
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        value.as_bool().ok_or_else(|| Misfit::expected(Self::TYPE, &value))
    }
}

impl WireArg for String {
    const TYPE: &'static str = "string";
    const LIST_TYPE: &'static str = "[]string";

    fn into_wire(self) -> Result<Value, Misfit> {
        Ok(self.into())
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(Misfit::expected(Self::TYPE, &other)),
        }
    }
}

macro_rules! integers {
    ($($int:ty, $kind:literal, $list:literal;)*) => {$(
        impl WireArg for $int {
            const TYPE: &'static str = $kind;
            const LIST_TYPE: &'static str = $list;

            fn into_wire(self) -> Result<Value, Misfit> {
                Ok(self.into())
            }

            fn from_wire(value: Value) -> Result<Self, Misfit> {
                whole_number(&value).and_then(|n| n.try_into().ok()).ok_or_else(|| Misfit::expected($kind, &value))
            }
        }
    )*};
}

integers! {
    i8, "int8", "[]int8";
    i16, "int16", "[]int16";
    i32, "int32", "[]int32";
    i64, "int64", "[]int64";
    isize, "int64", "[]int64";
    u16, "uint16", "[]uint16";
    u32, "uint32", "[]uint32";
    u64, "uint64", "[]uint64";
    usize, "uint64", "[]uint64";
}

/// A byte; a list of bytes is base64 text, as in Go.
impl WireArg for u8 {
    const TYPE: &'static str = "uint8";
    const LIST_TYPE: &'static str = "[]byte";

    fn into_wire(self) -> Result<Value, Misfit> {
        Ok(self.into())
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        whole_number(&value)
            .and_then(|n| n.try_into().ok())
            .ok_or_else(|| Misfit::expected(Self::TYPE, &value))
    }

    fn list_into_wire(list: Vec<Self>) -> Result<Value, Misfit> {
        Ok(BASE64.encode(list).into())
    }

    fn list_from_wire(value: Value) -> Result<Vec<Self>, Misfit> {
        const EXPECTED: &str = "base64 text ([]byte)";
        match value {
            Value::Null => Ok(Vec::new()),
            Value::String(text) => {
                BASE64.decode(&text).map_err(|_| Misfit::expected(EXPECTED, &Value::String(text)))
            }
            Value::Array(values) => {
                let bytes: Option<_> = values.iter().map(|v| whole_number(v)?.try_into().ok()).collect();
                bytes.ok_or_else(|| Misfit::expected(EXPECTED, &Value::Array(values)))
            }
            other => Err(Misfit::expected(EXPECTED, &other)),
        }
    }
}

/// Padding is written, but not required.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns the number of a value. Text that is a JSON number is one too: `machinist send` and command tasks write a
/// number as text if it would be spelled in another way otherwise, such as 1.10.
fn number(value: &Value) -> Option<Cow<'_, Number>> {
    match value {
        Value::Number(number) => Some(Cow::Borrowed(number)),
        // The parser allows white space around a number, which nobody writes as a number.
        Value::String(text) if text.trim() == text => serde_json::from_str(text).ok().map(Cow::Owned),
        _ => None,
    }
}

/// Returns the whole number of a value. Languages that know only floats write 3 as 3.0: such a float is accepted as
/// long as floats represent whole numbers exactly. A whole number that came as one never passes through a float.
fn whole_number(value: &Value) -> Option<i128> {
    const MAX_EXACT: f64 = (1_u64 << 53) as f64;
    let number = number(value)?;
    number.as_i128().or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() < MAX_EXACT).then_some(float as i128)
    })
}

impl WireArg for f64 {
    const TYPE: &'static str = "float64";
    const LIST_TYPE: &'static str = "[]float64";

    fn into_wire(self) -> Result<Value, Misfit> {
        let number = Number::from_f64(self);
        number.map(Value::Number).ok_or_else(|| Misfit::new(format_args!("{self} has no form on the wire")))
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        number(&value).and_then(|n| n.as_f64()).ok_or_else(|| Misfit::expected(Self::TYPE, &value))
    }
}

impl WireArg for f32 {
    const TYPE: &'static str = "float32";
    const LIST_TYPE: &'static str = "[]float32";

    fn into_wire(self) -> Result<Value, Misfit> {
        f64::from(self).into_wire()
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        let wide = number(&value).and_then(|n| n.as_f64());
        let narrowed = wide.map(|wide| wide as Self).filter(|narrow| narrow.is_finite());
        narrowed.ok_or_else(|| Misfit::expected(Self::TYPE, &value))
    }
}

impl<T: WireArg> WireArg for Vec<T> {
    const TYPE: &'static str = T::LIST_TYPE;

    fn into_wire(self) -> Result<Value, Misfit> {
        T::list_into_wire(self)
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        T::list_from_wire(value)
    }
}

/// `None` is `null`, and is also read if the argument was left out at the end.
impl<T: WireArg> WireArg for Option<T> {
    const TYPE: &'static str = T::TYPE;

    fn into_wire(self) -> Result<Value, Misfit> {
        self.map_or(Ok(Value::Null), T::into_wire)
    }

    fn from_wire(value: Value) -> Result<Self, Misfit> {
        match value {
            Value::Null => Ok(None),
            value => T::from_wire(value).map(Some),
        }
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

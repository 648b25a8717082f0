//! What the plain functions share: their type signature and access to text columns without copying rows.

use arrow::{
    array::{Array, ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray},
    datatypes::DataType,
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue, plan_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use std::{
    hash::{Hash, Hasher},
    ops::RangeInclusive,
    sync::Arc,
};

/// Body of a plain function.
pub(super) type Body = Arc<dyn Fn(&ScalarFunctionArgs) -> Result<ArrayRef> + Send + Sync>;

/// A plain function: arguments of fixed types, some of them optional at the end.
pub(super) struct Plain {
    name: &'static str,
    types: Vec<DataType>,
    required: usize,
    returns: DataType,
    signature: Signature,
    body: Body,
}

impl Plain {
    /// `types` are the types of all arguments; the first `required` of them must be given. Text types also accept large and view strings.
    pub(super) fn udf(
        name: &'static str,
        types: Vec<DataType>,
        required: usize,
        returns: DataType,
        body: Body,
    ) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self {
            name,
            types,
            required,
            returns,
            signature: Signature::user_defined(Volatility::Immutable),
            body,
        })
    }
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").field("name", &self.name).finish_non_exhaustive()
    }
}
// One function of a name in a session, so the name decides.
impl PartialEq for Plain {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Plain {}
impl Hash for Plain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Plain {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }
    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        coerce(self.name, self.required..=self.types.len(), given, |i| self.types[i].clone())
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let args = ScalarFunctionArgs { number_rows: if constant { 1 } else { args.number_rows }, ..args };
        let array = (self.body)(&args)?;
        if constant {
            ScalarValue::try_from_array(&array, 0).map(ColumnarValue::Scalar)
        } else {
            Ok(ColumnarValue::Array(array))
        }
    }
}

/// Checks the number and the types of arguments; text arguments become Utf8, whole numbers Int64.
pub(super) fn coerce(
    name: &str,
    arity: RangeInclusive<usize>,
    given: &[DataType],
    wanted: impl Fn(usize) -> DataType,
) -> Result<Vec<DataType>> {
    if !arity.contains(&given.len()) {
        let (low, high) = (arity.start(), arity.end());
        let count = if low == high { low.to_string() } else { format!("{low} to {high}") };
        return plan_err!("{name} takes {count} arguments, not {}", given.len());
    }
    given
        .iter()
        .enumerate()
        .map(|(i, given)| {
            let wanted = wanted(i);
            let fits = match wanted {
                DataType::Utf8 => is_text(given),
                DataType::Int64 => given.is_integer() || *given == DataType::Null,
                _ => *given == wanted,
            };
            if fits {
                return Ok(wanted);
            }
            let kind = if wanted == DataType::Utf8 { "text" } else { "a whole number" };
            plan_err!("argument {} of {name} must be {kind}, not {given}", i + 1)
        })
        .collect()
}

fn is_text(given: &DataType) -> bool {
    match given {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// A text column of any string type, or one text for all rows.
pub(super) enum Texts {
    One(Option<String>),
    Utf8(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
}

impl Texts {
    pub(super) fn new(value: &ColumnarValue) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(scalar) => match scalar.try_as_str() {
                Some(text) => Ok(Self::One(text.map(str::to_owned))),
                None if scalar.is_null() => Ok(Self::One(None)),
                None => Err(DataFusionError::Internal(format!("not a text: {scalar:?}"))),
            },
            ColumnarValue::Array(array) => match array.data_type() {
                DataType::Utf8 => Ok(Self::Utf8(array.as_string().clone())),
                DataType::LargeUtf8 => Ok(Self::Large(array.as_string().clone())),
                DataType::Utf8View => Ok(Self::View(array.as_string_view().clone())),
                DataType::Null => Ok(Self::One(None)),
                other => Err(DataFusionError::Internal(format!("not a text column: {other}"))),
            },
        }
    }
    /// Row `i`; None for NULL.
    pub(super) fn get(&self, i: usize) -> Option<&str> {
        match self {
            Self::One(text) => text.as_deref(),
            Self::Utf8(array) => array.is_valid(i).then(|| array.value(i)),
            Self::Large(array) => array.is_valid(i).then(|| array.value(i)),
            Self::View(array) => array.is_valid(i).then(|| array.value(i)),
        }
    }
}

/// The constant value of an optional text argument. None where the argument is not given.
pub(super) fn constant<'a>(name: &str, args: &'a ScalarFunctionArgs, i: usize, what: &str) -> Result<Option<&'a str>> {
    match args.args.get(i) {
        None => Ok(None),
        Some(ColumnarValue::Scalar(scalar)) => match scalar.try_as_str() {
            Some(text) => Ok(text),
            None => Ok(None),
        },
        Some(ColumnarValue::Array(_)) => plan_err!("{name}: {what} must be a constant text"),
    }
}

//! The face of a [`ModelFunction`] inside SQL expressions: name, types, argument checks. It is never evaluated: the optimizer rule of
//! [`crate::catalog::hoist`] moves every call into the model operator.

use super::{ModelFunction, args::coerce};
use arrow::datatypes::DataType;
use datafusion::{
    common::{Result, internal_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A model function as the planner sees it.
#[derive(Debug)]
pub struct ModelUdf {
    function: Arc<dyn ModelFunction>,
    signature: Signature,
}

impl ModelUdf {
    /// The function to register. Volatile, so that nothing evaluates or copies a call before it is hoisted.
    pub fn udf(function: Arc<dyn ModelFunction>) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self { function, signature: Signature::user_defined(Volatility::Volatile) })
    }
    /// The model function behind a scalar function, if it is one.
    pub fn of(udf: &ScalarUDF) -> Option<&Arc<dyn ModelFunction>> {
        let inner: &dyn std::any::Any = udf.inner().as_ref();
        inner.downcast_ref::<Self>().map(|udf| &udf.function)
    }
}

// One function of a name in a session, so the name decides.
impl PartialEq for ModelUdf {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name()
    }
}
impl Eq for ModelUdf {}
impl Hash for ModelUdf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name().hash(state);
    }
}

impl ScalarUDFImpl for ModelUdf {
    fn name(&self) -> &str {
        self.function.name()
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.function.return_type())
    }
    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        coerce(self.function.name(), self.function.arity(), given, |_| DataType::Utf8)
    }
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("{} was not moved into the model operator", self.function.name())
    }
}

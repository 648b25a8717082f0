//! The face of a [`ModelFunction`] inside SQL expressions: name, types, argument checks. It is never evaluated: the optimizer rule of
//! [`crate::catalog::hoist`] moves every call into the model operator.

use super::{ModelFunction, args::coerce, models::Models};
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
    /// Takes calls that name no model.
    plain: Option<ScalarUDF>,
    signature: Signature,
}

impl ModelUdf {
    /// The function to register. Volatile, so that nothing evaluates or copies a call before it is hoisted; one that can do without a model is
    /// an ordinary function where there is none.
    pub fn udf(function: Arc<dyn ModelFunction>, models: &Models) -> ScalarUDF {
        let plain = function.without_model().filter(|_| models.spec(function.model_argument().1).is_none());
        let volatility = if plain.is_some() { Volatility::Immutable } else { Volatility::Volatile };
        ScalarUDF::new_from_impl(Self { function, plain, signature: Signature::user_defined(volatility) })
    }
    /// The model function behind a call with that many arguments, if a model takes it.
    pub fn of(udf: &ScalarUDF, arguments: usize) -> Option<&Arc<dyn ModelFunction>> {
        let inner: &dyn std::any::Any = udf.inner().as_ref();
        let udf = inner.downcast_ref::<Self>()?;
        let names_model = arguments > udf.function.model_argument().0;
        (udf.plain.is_none() || names_model).then_some(&udf.function)
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
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let Some(plain) = self.plain.as_ref().filter(|_| args.args.len() <= self.function.model_argument().0) {
            return plain.invoke_with_args(args);
        }
        internal_err!("{} was not moved into the model operator", self.function.name())
    }
}

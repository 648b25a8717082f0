//! Arrow types of Parquet sources: made plain, widened to one type for all files, and arrays fitted to it.

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray, StructArray, new_null_array},
    compute::{CastOptions, can_cast_types, cast_with_options},
    datatypes::{DataType, Field, Fields, TimeUnit},
    error::ArrowError,
};
use std::sync::Arc;

/// The type that is written for a type that is read: no views, no dictionaries, no large offsets, no run ends.
pub(super) fn plain(data_type: &DataType) -> DataType {
    let field = |f: &Arc<Field>| Arc::new(Field::new(f.name(), plain(f.data_type()), f.is_nullable()));
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        DataType::RunEndEncoded(_, value) => plain(value.data_type()),
        DataType::List(f) | DataType::LargeList(f) | DataType::ListView(f) | DataType::LargeListView(f) => {
            DataType::List(Arc::new(Field::new_list_field(plain(f.data_type()), true)))
        }
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(field(f), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// The narrowest type that holds both, or None.
pub(super) fn merge(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Boolean, Date32, Date64, Float64, Int64, List, Null, Struct, Timestamp, UInt64, Utf8};
    match (a, b) {
        _ if a == b => Some(a.clone()),
        (Null, other) | (other, Null) => Some(other.clone()),
        (List(a), List(b)) => Some(List(Arc::new(Field::new_list_field(merge(a.data_type(), b.data_type())?, true)))),
        (Struct(a), Struct(b)) => merge_fields(a, b).map(Struct),
        _ if a.is_nested() || b.is_nested() => None,
        _ if a.is_integer() && b.is_integer() => Some(match (a, b) {
            _ if a.is_unsigned_integer() && b.is_unsigned_integer() => UInt64,
            (UInt64, _) | (_, UInt64) => Float64,
            _ => Int64,
        }),
        _ if number(a) && number(b) => Some(Float64),
        (Timestamp(u, zone), Timestamp(v, other)) if zone == other => Some(Timestamp(finer(*u, *v), zone.clone())),
        (Date32, Date64) | (Date64, Date32) => Some(Date64),
        (Utf8, other) | (other, Utf8) => can_cast_types(other, &Utf8).then_some(Utf8),
        (Boolean, other) | (other, Boolean) if number(other) => Some(Utf8),
        _ => None,
    }
}

fn number(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_floating()
}

fn finer(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    let rank = |u| match u {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    };
    if rank(a) >= rank(b) { a } else { b }
}

fn merge_fields(a: &Fields, b: &Fields) -> Option<Fields> {
    let mut out: Vec<Field> = Vec::new();
    for field in a {
        let data_type = match b.find(field.name()) {
            Some((_, other)) => merge(field.data_type(), other.data_type())?,
            None => field.data_type().clone(),
        };
        out.push(Field::new(field.name(), data_type, true));
    }
    out.extend(
        b.iter().filter(|f| a.find(f.name()).is_none()).map(|f| Field::new(f.name(), f.data_type().clone(), true)),
    );
    Some(out.into())
}

/// The array as `target`. Struct fields go by name, missing ones are null. A value that does not fit becomes null; the caller compares.
pub(super) fn adapt(array: &ArrayRef, target: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    match (array.data_type(), target) {
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let from = array.as_struct();
            let child = |f: &Arc<Field>| match from.column_by_name(f.name()) {
                Some(column) => adapt(column, f.data_type()),
                None => Ok(new_null_array(f.data_type(), from.len())),
            };
            let columns = fields.iter().map(child).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(StructArray::try_new(fields.clone(), columns, from.nulls().cloned())?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let (_, offsets, values, nulls) = array.as_list::<i32>().clone().into_parts();
            let values = adapt(&values, item.data_type())?;
            Ok(Arc::new(ListArray::try_new(item.clone(), offsets, values, nulls)?))
        }
        _ => cast_with_options(array, target, &CastOptions { safe: true, ..CastOptions::default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataType::{Float64, Int32, Int64, LargeUtf8, UInt8, UInt64, Utf8};

    #[test]
    fn types_widen() {
        assert_eq!(merge(&Int32, &Int64), Some(Int64));
        assert_eq!(merge(&UInt8, &Int32), Some(Int64));
        assert_eq!(merge(&UInt64, &Int32), Some(Float64));
        assert_eq!(merge(&Int64, &Float64), Some(Float64));
        assert_eq!(merge(&Int64, &Utf8), Some(Utf8));
        let list = |t| DataType::List(Arc::new(Field::new_list_field(t, true)));
        assert_eq!(merge(&list(Int32), &list(Float64)), Some(list(Float64)));
        assert_eq!(merge(&list(Int32), &Int32), None);
        let dictionary = DataType::Dictionary(Box::new(Int32), Box::new(LargeUtf8));
        assert_eq!(plain(&dictionary), Utf8);
    }
}

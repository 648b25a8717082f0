//! What a run measured about itself: `step, name, value, wall_seconds`, one row a figure. Writes Parquet bytes; where they go
//! is the caller's business.

use arrow::{
    array::{Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// All figures so far, in the order they were taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    rows: Vec<(u64, String, f64, f64)>,
}

impl Metrics {
    /// Notes a figure. `wall_seconds` counts from the start of training, earlier runs included.
    pub fn push(&mut self, step: u64, name: &str, value: f64, wall_seconds: f64) {
        self.rows.push((step, name.to_owned(), value, wall_seconds));
    }

    /// The last value of that name.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.rows.iter().rev().find(|row| row.1 == name).map(|row| row.2)
    }

    /// The table as a Parquet file.
    ///
    /// # Errors
    /// Only those of the Parquet writer.
    pub fn to_parquet(&self) -> anyhow::Result<bytes::Bytes> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("step", DataType::Int64, false),
            Field::new("name", DataType::Utf8, false),
            Field::new("value", DataType::Float64, false),
            Field::new("wall_seconds", DataType::Float64, false),
        ]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(self.rows.iter().map(|row| row.0 as i64).collect::<Int64Array>()),
                Arc::new(self.rows.iter().map(|row| Some(row.1.as_str())).collect::<StringArray>()),
                Arc::new(self.rows.iter().map(|row| row.2).collect::<Float64Array>()),
                Arc::new(self.rows.iter().map(|row| row.3).collect::<Float64Array>()),
            ],
        )?;
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, None)?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    #[test]
    fn plain_columns() {
        let mut metrics = Metrics::default();
        metrics.push(10, "loss", 2.5, 1.0);
        metrics.push(10, "lr", 0.003, 1.0);
        metrics.push(20, "loss", 1.5, 2.0);
        assert_eq!(metrics.last("loss"), Some(1.5));
        assert_eq!(metrics.last("norm"), None);
        let reader = ParquetRecordBatchReaderBuilder::try_new(metrics.to_parquet().unwrap()).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        let names: Vec<&str> = batches[0].schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["step", "name", "value", "wall_seconds"]);
        assert_eq!(batches[0].num_rows(), 3);
    }
}

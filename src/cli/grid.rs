//! Text in columns: numbers to the right, words to the left.

/// Rows of cells under a head line.
#[derive(Debug, Default)]
pub struct Grid {
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

/// Whether a cell is set to the right.
fn figure(cell: &str) -> bool {
    cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit())
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |c: usize| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let right: Vec<bool> = (0..columns)
            .map(|c| self.rows.len() > 1 && self.rows[1..].iter().all(|r| figure(&r[c]) || r[c].is_empty()))
            .collect();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(c, cell)| match right[c] {
                true => format!("{cell:>w$}", w = widths[c]),
                false => format!("{cell:<w$}", w = widths[c]),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_right_and_words_left() {
        let mut grid = Grid::new(["stage", "rows"]);
        grid.row(["a".into(), "1,000".into()]);
        grid.row(["longer".into(), "-".into()]);
        assert_eq!(grid.to_string(), "stage    rows\na       1,000\nlonger      -\n");
    }
}

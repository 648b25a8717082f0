//! A chart as SVG: lines over numbers or bars over names, with error bars, a legend, and axes with round ticks. Pure: numbers in, text out.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 64.0;
/// Height of a line of the legend.
const LINE: f64 = 18.0;
/// Colours that colour-blind people can tell apart (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933"];

/// How the points are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Points joined by a line; x are numbers.
    Line,
    /// A bar for each; x are names.
    Bar,
}

/// Where a point stands.
#[derive(Debug, Clone, PartialEq)]
pub enum X {
    /// On a scale.
    Number(f64),
    /// In a place of its own.
    Name(String),
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Where.
    pub x: X,
    /// The value.
    pub y: f64,
    /// Half the length of its error bar; None for no bar.
    pub error: Option<f64>,
}

/// Points of one colour.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Shown in the legend; empty for none.
    pub name: String,
    /// In the order in which they are joined.
    pub points: Vec<Point>,
}

/// Everything that is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// How.
    pub mark: Mark,
    /// In the order of the legend.
    pub series: Vec<Series>,
}

/// A range of values and the ticks on it.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// Round ends around the values, five to ten steps between them.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) =
            values.filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let (low, high) = match () {
            () if low > high => (0.0, 1.0),
            () if low == high => (low - low.abs().max(1.0) * 0.1, high + high.abs().max(1.0) * 0.1),
            () => (low, high),
        };
        let rough = (high - low) / 5.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|n| n * magnitude)
            .find(|s| *s >= rough * 0.999)
            .unwrap_or(rough);
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|i| self.low + i as f64 * self.step)
    }

    /// Share of the way from the low end to the high one.
    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn label(&self, value: f64) -> String {
        let large = self.low.abs().max(self.high.abs());
        if large >= 1e5 || (large < 1e-3 && large > 0.0) {
            return format!("{value:.2e}");
        }
        let decimals = (0..8).find(|d| {
            let scaled = self.step * 10f64.powi(*d);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1.0)
        });
        let text = format!("{value:.*}", decimals.unwrap_or(3) as usize);
        if text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.')) { text.replace('-', "") } else { text }
    }
}

impl Chart {
    /// The picture, a complete SVG file.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n<title>{0}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
            escape(&self.title)
        );
        text(
            &mut out,
            WIDTH / 2.0,
            24.0,
            "middle",
            &format!("<tspan font-size=\"16\">{}</tspan>", escape(&self.title)),
        );
        let y = Axis::around(self.values());
        self.frame(&mut out, &y);
        match self.mark {
            Mark::Line => self.lines(&mut out, &y),
            Mark::Bar => self.bars(&mut out, &y),
        }
        self.legend(&mut out);
        out.push_str("</svg>\n");
        out
    }

    /// What the vertical axis has to hold; bars begin at 0.
    fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let points = self.series.iter().flat_map(|s| &s.points);
        let ends = points.flat_map(|p| [p.y - p.error.unwrap_or(0.0), p.y + p.error.unwrap_or(0.0)]);
        ends.chain((self.mark == Mark::Bar).then_some(0.0))
    }

    fn frame(&self, out: &mut String, y: &Axis) {
        for tick in y.ticks() {
            let at = vertical(y, tick);
            line(out, (LEFT, at), (WIDTH - RIGHT, at), "#dddddd", 1.0);
            text(out, LEFT - 8.0, at + 4.0, "end", &y.label(tick));
        }
        line(out, (LEFT, TOP), (LEFT, HEIGHT - BOTTOM), "#333333", 1.0);
        line(out, (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM), "#333333", 1.0);
        text(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 16.0, "middle", &escape(&self.x_label));
        let (x, middle) = (18.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 {x} {middle:.1})\">{}</text>",
            escape(&self.y_label)
        );
    }

    fn lines(&self, out: &mut String, y: &Axis) {
        let number = |p: &Point| match &p.x {
            X::Number(x) => Some(*x),
            X::Name(_) => None,
        };
        let x = Axis::around(self.series.iter().flat_map(|s| s.points.iter().filter_map(number)));
        for tick in x.ticks() {
            let at = horizontal(x.share(tick));
            line(out, (at, HEIGHT - BOTTOM), (at, HEIGHT - BOTTOM + 5.0), "#333333", 1.0);
            text(out, at, HEIGHT - BOTTOM + 20.0, "middle", &x.label(tick));
        }
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let places: Vec<(f64, f64)> = series
                .points
                .iter()
                .filter_map(|p| Some((horizontal(x.share(number(p)?)), vertical(y, p.y))))
                .collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for ((at, height), point) in places.iter().zip(series.points.iter().filter(|p| number(p).is_some())) {
                error_bar(out, y, *at, point, colour);
                let _ = writeln!(out, "<circle cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
            }
        }
    }

    fn bars(&self, out: &mut String, y: &Axis) {
        let mut names: Vec<String> = Vec::new();
        for point in self.series.iter().flat_map(|s| &s.points) {
            let name = shown(&point.x);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let place = 1.0 / names.len().max(1) as f64;
        let width = (WIDTH - LEFT - RIGHT) * place * 0.8 / self.series.len().max(1) as f64;
        for (at, name) in names.iter().enumerate() {
            text(out, horizontal((at as f64 + 0.5) * place), HEIGHT - BOTTOM + 20.0, "middle", &escape(name));
        }
        for ((number, series), colour) in self.series.iter().enumerate().zip(COLOURS.iter().cycle()) {
            for point in &series.points {
                let at = names.iter().position(|n| *n == shown(&point.x)).unwrap_or_default();
                let left = horizontal((at as f64 + 0.1) * place) + number as f64 * width;
                let (zero, value) = (vertical(y, 0.0), vertical(y, point.y));
                let (top, height) = (zero.min(value), (zero - value).abs());
                let _ = writeln!(
                    out,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
                    width * 0.92
                );
                error_bar(out, y, left + width * 0.46, point, "#333333");
            }
        }
    }

    fn legend(&self, out: &mut String) {
        let named = self.series.iter().zip(COLOURS.iter().cycle()).filter(|(s, _)| !s.name.is_empty());
        for (row, (series, colour)) in named.enumerate() {
            let y = TOP + 6.0 + row as f64 * LINE;
            let x = LEFT + 14.0;
            let _ = writeln!(out, "<rect x=\"{x}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
            text(out, x + 18.0, y + 11.0, "start", &escape(&series.name));
        }
    }
}

fn shown(x: &X) -> String {
    match x {
        X::Number(n) => n.to_string(),
        X::Name(name) => name.clone(),
    }
}

fn horizontal(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn vertical(y: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)
}

fn error_bar(out: &mut String, y: &Axis, at: f64, point: &Point, colour: &str) {
    let Some(error) = point.error.filter(|e| *e > 0.0) else { return };
    let (low, high) = (vertical(y, point.y - error), vertical(y, point.y + error));
    line(out, (at, low), (at, high), colour, 1.5);
    for end in [low, high] {
        line(out, (at - 5.0, end), (at + 5.0, end), colour, 1.5);
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// `content` is escaped already.
fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

fn escape(text: &str) -> String {
    let legal = |c: &char| !c.is_control();
    let plain: String = text.chars().filter(legal).collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(low: f64, high: f64) -> Vec<String> {
        let axis = Axis::around([low, high].into_iter());
        axis.ticks().map(|tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(axis(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(axis(-3.1, 6.5), ["-4", "-2", "0", "2", "4", "6", "8"]);
        assert_eq!(axis(2.93, 3.07), ["2.90", "2.95", "3.00", "3.05", "3.10"]);
        assert_eq!(axis(0.0, 5e6).first().map(String::as_str), Some("0.00e0"));
        assert_eq!(axis(5.0, 5.0), ["4.4", "4.6", "4.8", "5.0", "5.2", "5.4", "5.6"]);
    }

    #[test]
    fn a_chart_shows_every_point_and_escapes_names() {
        let point = |x: X, y, error| Point { x, y, error };
        let series = |name: &str, points| Series { name: name.to_owned(), points };
        let mut chart = Chart {
            title: "a < b & \"c\"".into(),
            x_label: "tokens".into(),
            y_label: "loss".into(),
            mark: Mark::Line,
            series: vec![
                series("one", vec![point(X::Number(1.0), 2.0, Some(0.5)), point(X::Number(3.0), 4.0, None)]),
                series("two", vec![point(X::Number(2.0), 3.0, Some(0.0))]),
            ],
        };
        let svg = chart.svg();
        assert!(svg.contains("<title>a &lt; b &amp; &quot;c&quot;</title>"), "{svg}");
        assert_eq!((svg.matches("<circle").count(), svg.matches("<polyline").count()), (3, 2));
        // One error bar of three lines; the axis goes from 1.5 to 4.
        assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 3);
        assert!(svg.contains(">1.5<") && svg.contains(">4.0<"), "{svg}");
        chart.mark = Mark::Bar;
        chart.series[0].points[0].x = X::Name("left".into());
        let svg = chart.svg();
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 2);
        assert!(svg.contains(">left<") && svg.contains(">0<"), "{svg}");
    }
}

//! Figures beside their baselines and targets, as a table or as JSON.

use std::time::Instant;

use serde::Serialize;

/// What a target speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Target {
    /// The value itself.
    AtMost(f64),
    /// What is added above an empty program at the same hooks.
    AddedAtMost(f64),
    /// The ratio to nothing.
    RatioAtLeast(f64),
    /// The ratio to the other configuration that the figure names.
    RatioAtMost(f64),
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    /// In which configuration.
    pub(crate) setup: String,
    /// Median.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Value divided by that of the baseline (for rates, so that one is no loss).
    pub(crate) ratio: Option<f64>,
    /// Value less that of an empty program at the same hooks.
    pub(crate) added: Option<f64>,
    pub(crate) target: Option<Target>,
    /// Whether the target is met; absent without one.
    pub(crate) met: Option<bool>,
}

impl Figure {
    pub(crate) fn new(what: &str, setup: &str, value: f64, unit: &'static str) -> Self {
        let (what, setup) = (what.to_owned(), setup.to_owned());
        Self { what, setup, value, unit, ratio: None, added: None, target: None, met: None }
    }

    pub(crate) fn ratio(mut self, ratio: Option<f64>) -> Self {
        self.ratio = ratio;
        self
    }

    pub(crate) fn added(mut self, added: Option<f64>) -> Self {
        self.added = added;
        self
    }

    pub(crate) fn target(mut self, target: Option<Target>) -> Self {
        self.target = target;
        self.met = target.and_then(|target| {
            Some(match target {
                Target::AtMost(limit) => self.value <= limit,
                Target::AddedAtMost(limit) => self.added? <= limit,
                Target::RatioAtLeast(limit) => self.ratio? >= limit,
                Target::RatioAtMost(limit) => self.ratio? <= limit,
            })
        });
        self
    }

    fn cells(&self) -> [String; 7] {
        let target = self.target.map_or(String::new(), |target| match target {
            Target::AtMost(limit) => format!("<= {} {}", number(limit), self.unit),
            Target::AddedAtMost(limit) => format!("added <= {} {}", number(limit), self.unit),
            Target::RatioAtLeast(limit) => format!("ratio >= {limit}"),
            Target::RatioAtMost(limit) => format!("ratio <= {limit}"),
        });
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.what.clone(),
            self.setup.clone(),
            format!("{} {}", number(self.value), self.unit),
            self.ratio.map_or(String::new(), |r| format!("{r:.3}")),
            self.added.map_or(String::new(), |a| format!("{a:+.0} {}", self.unit)),
            target,
            met.to_owned(),
        ]
    }
}

fn number(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// An aligned table: numbers to the right.
pub(crate) fn table(title: &str, figures: &[Figure]) -> String {
    const HEAD: [&str; 7] =
        ["what", "configuration", "median", "ratio", "above empty", "target", ""];
    const RIGHT: [bool; 7] = [false, false, true, true, true, false, false];
    let rows: Vec<[String; 7]> =
        std::iter::once(HEAD.map(String::from)).chain(figures.iter().map(Figure::cells)).collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = format!("\n{title}\n");
    for row in &rows {
        let cells = row.iter().zip(widths).zip(RIGHT).map(|((cell, width), right)| {
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Milliseconds since then.
pub(crate) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The median; zero of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The median over rounds of what `with` makes of the two values of a round: what drifts during a
/// run is in both.
pub(crate) fn paired(a: &[f64], b: &[f64], with: fn(f64, f64) -> f64) -> Option<f64> {
    let values: Vec<f64> = a.iter().zip(b).map(|(a, b)| with(*a, *b)).collect();
    (!values.is_empty()).then(|| median(&values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn drift_is_in_both_values_of_a_round() {
        let difference = paired(&[11.0, 21.0, 31.0], &[10.0, 20.0, 30.0], |a, b| a - b);
        assert_eq!(difference, Some(1.0));
    }

    #[test]
    fn a_target_without_its_baseline_is_neither_met_nor_missed() {
        let figure = Figure::new("a", "b", 5.0, "ns");
        assert_eq!(figure.clone().target(Some(Target::AtMost(4.0))).met, Some(false));
        assert_eq!(figure.target(Some(Target::AddedAtMost(4.0))).met, None);
    }
}

//! Plots: horizontal bars with the span of all rounds, as SVG. One file serves light and
//! dark surroundings, for the colours follow `prefers-color-scheme`.

use std::fmt::Write as _;

use crate::results::{Better, Comparison, Line};
use crate::spread::{Spread, shortly};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
const NAMES: f64 = 250.0;
const FIGURES: f64 = 150.0;
const HEAD: f64 = 62.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;

const STYLE: &str = "\
text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.faint { fill: #59636e; font-size: 12px; }
.paper { fill: #ffffff; }
.bar { fill: #8c959f; }
.own { fill: #0969da; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.span { stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.faint { fill: #9198a1; }
.paper { fill: #0d1117; }
.bar { fill: #656c76; }
.own { fill: #4493f8; }
.grid { stroke: #3d444d; }
.span { stroke: #f0f6fc; }
}
";

/// Draws one measure of a comparison, by its place. `None` where no contender has figures.
#[must_use]
pub fn bars(comparison: &Comparison, measure: usize) -> Option<String> {
    let lines = drawn(comparison, measure);
    let most = lines
        .iter()
        .map(|(_, spread)| spread.greatest)
        .fold(0.0, f64::max);
    let (step, end) = scale(most)?;
    let height = HEAD + ROW * lines.len() as f64 + MARGIN + 18.0;
    let mut text = head(comparison, measure, height)?;
    grid(&mut text, step, end, height);
    for (place, (line, spread)) in lines.iter().enumerate() {
        let top = HEAD + ROW * place as f64;
        bar(&mut text, line, spread, lines.first()?.1, top, end);
    }
    text += "</svg>\n";
    Some(text)
}

fn drawn(comparison: &Comparison, measure: usize) -> Vec<(&Line, Spread)> {
    let figures = comparison
        .lines
        .iter()
        .map(|line| (line, line.figures.get(measure)));
    figures
        .filter_map(|(line, figures)| Some((line, Spread::of(figures?)?)))
        .collect()
}

fn head(comparison: &Comparison, measure: usize, height: f64) -> Option<String> {
    let measure = comparison.measures.get(measure)?;
    let better = match measure.better {
        Better::High => "more is better",
        Better::Low => "less is better",
    };
    let title = escaped(&comparison.title);
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <style>\n{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"28\">{title}</text>\n\
         <text class=\"faint\" x=\"{MARGIN}\" y=\"46\">{}; {better}; median, and the span of all \
         rounds</text>\n",
        escaped(&measure.name)
    ))
}

fn grid(text: &mut String, step: f64, end: f64, height: f64) {
    let bottom = height - MARGIN - 14.0;
    let mut value = 0.0;
    while value <= end * 1.0001 {
        let x = place_of(value, end);
        let _ = write!(
            text,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{HEAD}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\n\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            bottom + 15.0,
            shortly(value)
        );
        value += step;
    }
}

fn bar(text: &mut String, line: &Line, spread: &Spread, first: Spread, top: f64, end: f64) {
    let left = place_of(0.0, end);
    let (y, middle) = (top + (ROW - BAR) / 2.0, top + ROW / 2.0);
    let class = if line.name.starts_with("agent") {
        "own"
    } else {
        "bar"
    };
    let ratio = if first.median > 0.0 {
        format!(" ({} x)", shortly(spread.median / first.median))
    } else {
        String::new()
    };
    let (least, greatest) = (place_of(spread.least, end), place_of(spread.greatest, end));
    let _ = write!(
        text,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>\n\
         <line class=\"span\" x1=\"{least:.1}\" y1=\"{middle:.1}\" x2=\"{greatest:.1}\" y2=\"{middle:.1}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\">{}{ratio}</text>\n",
        left - 8.0,
        middle + 4.5,
        escaped(&line.name),
        (place_of(spread.median, end) - left).max(1.0),
        WIDTH - FIGURES + 6.0,
        middle + 4.5,
        shortly(spread.median),
    );
}

fn place_of(value: f64, end: f64) -> f64 {
    let left = MARGIN + NAMES;
    left + (WIDTH - FIGURES - left) * value / end
}

/// A step of 1, 2 or 5 times a power of ten, and the multiple of it that covers `most`.
fn scale(most: f64) -> Option<(f64, f64)> {
    if !(most > 0.0 && most.is_finite()) {
        return None;
    }
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let wanted = most / 4.0 / power;
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| *factor >= wanted)?;
    let step = factor * power;
    Some((step, step * (most / step).ceil()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Comparison {
        let mut comparison = Comparison::new("t", "TCP <one> & more", &[("Gbit/s", Better::High)]);
        comparison.add("direct", &[Some(24.0)]);
        comparison.add("agent, user path", &[Some(12.0)]);
        comparison.add("agent, user path", &[Some(14.0)]);
        comparison.add("kernel path", &[None]);
        comparison
    }

    #[test]
    fn contenders_with_figures_have_bars_and_the_agents_stand_out() {
        let svg = bars(&example(), 0).unwrap();
        assert_eq!(svg.matches("<rect class=\"bar\"").count(), 1);
        assert_eq!(svg.matches("<rect class=\"own\"").count(), 1);
        assert!(svg.contains(">13 (0.542 x)</text>"), "{svg}");
        assert!(svg.contains("TCP &lt;one&gt; &amp; more"));
        assert!(svg.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn without_figures_there_is_nothing_to_draw() {
        let empty = Comparison::new("t", "T", &[("s", Better::Low)]);
        assert_eq!(bars(&empty, 0), None);
        assert_eq!(bars(&example(), 1), None);
        let mut zero = empty.clone();
        zero.add("kube-proxy", &[Some(0.0)]);
        assert_eq!(bars(&zero, 0), None);
    }

    #[test]
    fn a_scale_has_few_round_steps_and_covers_the_greatest() {
        for most in [0.003, 0.9, 1.0, 4.0, 7.3, 24.0, 99.0, 12_345.0] {
            let (step, end) = scale(most).unwrap();
            assert!(end >= most * 0.999 && end < most + step * 1.001, "{most}");
            let steps = (end / step).round();
            assert!((2.0..=5.0).contains(&steps), "{most}: {steps} steps");
        }
        assert_eq!(scale(0.0), None);
        assert_eq!(scale(f64::NAN), None);
    }
}

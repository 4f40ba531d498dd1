//! Charts with named lines over a common horizontal axis.

use super::{
    axis::{Axis, Scale},
    svg::{Anchor, Svg},
};

/// Distinct in hue and in lightness, so that they differ in grey and to colour-blind readers.
const COLORS: [&str; 4] = ["#0550ae", "#d1640a", "#1a7f37", "#8250df"];
/// More points than this are averaged in groups: a pixel cannot show them anyway.
const MAX_POINTS: usize = 160;
/// Up to this many points are marked with dots.
const MAX_DOTS: usize = 25;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 54.0;
/// Width of a character of the legend, on average, for placing what follows it.
const CHARACTER: f64 = 6.6;

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below the horizontal axis, with its unit.
    pub x_label: String,
    /// Beside the vertical axis, with its unit.
    pub y_label: String,
    /// Of the vertical axis.
    pub scale: Scale,
    /// The lines; those without a point are left out.
    pub series: Vec<Series>,
}

/// Draws charts side by side, as an SVG file on a light background.
pub fn render(charts: &[Chart]) -> String {
    let mut svg = Svg::default();
    for (column, chart) in charts.iter().enumerate() {
        draw(chart, column as f64 * WIDTH, &mut svg);
    }
    svg.finish(WIDTH * charts.len().max(1) as f64, HEIGHT)
}

fn draw(chart: &Chart, left: f64, svg: &mut Svg) {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = chart
        .series
        .iter()
        .filter(|series| !series.points.is_empty())
        .map(|series| (series.name.as_str(), thinned(&series.points)))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_axis = Axis::over(all().map(|point| point.0), 6, Scale::FromZero);
    let y_axis = Axis::over(all().map(|point| point.1), 5, chart.scale);
    let (x0, x1) = (left + LEFT, left + WIDTH - RIGHT);
    let (y0, y1) = (HEIGHT - BOTTOM, TOP);
    let x_of = |value: f64| x0 + x_axis.position(value) * (x1 - x0);
    let y_of = |value: f64| y0 + y_axis.position(value) * (y1 - y0);

    svg.text(x0, 26.0, Anchor::Start, "title", &chart.title);
    for (value, label) in y_axis.ticks() {
        let y = y_of(value);
        svg.line((x0, y), (x1, y), "grid");
        svg.text(x0 - 8.0, y + 4.0, Anchor::End, "tick", &label);
    }
    for (value, label) in x_axis.ticks() {
        let x = x_of(value);
        svg.line((x, y0), (x, y0 + 5.0), "axis");
        svg.text(x, y0 + 18.0, Anchor::Middle, "tick", &label);
    }
    svg.line((x0, y0), (x1, y0), "axis");
    svg.line((x0, y0), (x0, y1), "axis");
    svg.text((x0 + x1) / 2.0, HEIGHT - 14.0, Anchor::Middle, "label", &chart.x_label);
    svg.upward_text(left + 18.0, (y0 + y1) / 2.0, "label", &chart.y_label);

    let mut legend = x0;
    for ((name, points), color) in lines.iter().zip(COLORS.iter().cycle()) {
        let drawn: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x_of(*x), y_of(*y))).collect();
        svg.curve(&drawn, color);
        if drawn.len() <= MAX_DOTS {
            drawn.iter().for_each(|point| svg.dot(*point, color));
        }
        svg.curve(&[(legend, 46.0), (legend + 20.0, 46.0)], color);
        svg.text(legend + 27.0, 50.0, Anchor::Start, "label", name);
        legend += 27.0 + CHARACTER * name.chars().count() as f64 + 16.0;
    }
}

/// At most [`MAX_POINTS`] points: means over groups of neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> =
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    finite
        .chunks(finite.len().div_ceil(MAX_POINTS).max(1))
        .map(|group| {
            let count = group.len() as f64;
            let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (x / count, y / count)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: usize) -> Chart {
        let points: Vec<_> =
            (1..=points).map(|i| (i as f64, 2.3 / (1.0 + i as f64 / 50.0))).collect();
        Chart {
            title: "Training loss".into(),
            x_label: "step".into(),
            y_label: "loss (nats)".into(),
            scale: Scale::FromZero,
            series: vec![
                Series { name: "hard < soft".into(), points: points.clone() },
                Series { name: "none".into(), points: Vec::new() },
            ],
        }
    }

    #[test]
    fn names_are_escaped_and_empty_lines_left_out() {
        let svg = render(&[chart(10)]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("hard &lt; soft") && !svg.contains(">none<"));
    }

    #[test]
    fn many_points_are_averaged() {
        let long = thinned(&chart(10_000).series[0].points);
        assert!(long.len() <= MAX_POINTS);
        let mean = |points: &[(f64, f64)]| {
            points.iter().map(|point| point.0).sum::<f64>() / points.len() as f64
        };
        assert!((mean(&long) - 5_000.5).abs() < 40.0);
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let svg = render(&[chart(20), chart(20)]);
        for (circle, column) in svg.lines().filter(|line| line.starts_with("<circle")).zip(0..) {
            let number = |name: &str| -> f64 {
                let rest = circle.split(&format!("{name}=\"")).nth(1).unwrap();
                rest.split('"').next().unwrap().parse().unwrap()
            };
            let left = if column < 20 { 0.0 } else { WIDTH };
            assert!((left + LEFT..=left + WIDTH - RIGHT).contains(&number("cx")), "{circle}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&number("cy")), "{circle}");
        }
    }

    #[test]
    fn a_chart_without_points_is_drawn_empty() {
        let mut empty = chart(0);
        empty.series.clear();
        assert!(render(&[empty]).contains("Training loss"));
    }
}

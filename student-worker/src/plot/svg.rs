//! The elements of the picture.

use std::fmt::Write as _;

/// Where a text is anchored, horizontally.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG picture in the making. Coordinates in pixels from the upper left corner.
#[derive(Debug, Default)]
pub(super) struct Svg(String);

impl Svg {
    /// A line of text with its baseline at `y`.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, style: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.push(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{style}\">{text}</text>"
        ));
    }

    /// A line of text that reads upwards, centred on a point.
    pub(super) fn upward_text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        let text = escaped(text);
        self.push(format_args!(
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\" \
             class=\"{style}\">{text}</text>"
        ));
    }

    /// A straight line.
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{style}\"/>"
        ));
    }

    /// A line through points.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let path = path.trim_end();
        self.push(format_args!("<polyline points=\"{path}\" stroke=\"{color}\" class=\"curve\"/>"));
    }

    /// A filled dot.
    pub(super) fn dot(&mut self, (x, y): (f64, f64), color: &str) {
        self.push(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"));
    }

    /// The whole file.
    pub(super) fn finish(self, width: f64, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', \
             sans-serif\">\n<style>\n\
             .title {{ font-size: 15px; font-weight: bold; fill: #1f2328; }}\n\
             .label {{ font-size: 12px; fill: #424a53; }}\n\
             .tick {{ font-size: 11px; fill: #59636e; }}\n\
             .grid {{ stroke: #e4e7eb; stroke-width: 1; }}\n\
             .axis {{ stroke: #8c959f; stroke-width: 1; }}\n\
             .curve {{ fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }}\n\
             </style>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.0
        )
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{element}");
    }
}

/// Text as XML takes it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

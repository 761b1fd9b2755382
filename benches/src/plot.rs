//! A report as a bar chart, written by hand as SVG.

use std::fmt::Write as _;

use crate::report::{Report, Row, number};

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 16.0;
const LABEL: f64 = 230.0;
/// Right of the bars, for their figures.
const FIGURE: f64 = 130.0;
const BAR: f64 = 16.0;
const HEADING: f64 = 24.0;
const GAP: f64 = 14.0;
const TITLE: f64 = 52.0;
const OURS: &str = "#1f6f8b";
const RIVAL: &str = "#b9c0c7";

/// One group of bars per row that is `shown`, each scaled to its longest; whiskers from least to most.
pub(crate) fn svg(report: &Report, shown: impl Fn(&Row) -> bool) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| shown(row)).collect();
    let bars: usize = rows.iter().map(|row| row.measurements.len()).sum();
    let height = TITLE + rows.len() as f64 * (HEADING + GAP) + bars as f64 * BAR + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, MARGIN, 22.0, "start", "16", report.title);
    let about = format!(
        "{}, Linux {}, {}, {}",
        report.machine.processor, report.machine.kernel, report.machine.commit, report.machine.date
    );
    text(&mut out, MARGIN, 40.0, "start", "11", &about);
    let mut y = TITLE;
    for row in rows {
        text(&mut out, MARGIN, y + 16.0, "start", "13", &heading(row));
        y += HEADING;
        let longest = row.measurements.iter().map(|one| one.value.most).fold(f64::MIN_POSITIVE, f64::max);
        let scale = (WIDTH - LABEL - FIGURE - MARGIN) / longest;
        for one in &row.measurements {
            let (fill, length) = (if one.ours { OURS } else { RIVAL }, one.value.median.max(0.0) * scale);
            text(&mut out, LABEL - 8.0, y + 12.0, "end", "12", &one.name);
            let _ = writeln!(
                out,
                "<rect x=\"{LABEL}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
                y + 1.0,
                BAR - 3.0
            );
            let (least, most) =
                (LABEL + one.value.least.max(0.0) * scale, LABEL + one.value.most.max(0.0) * scale);
            let middle = y + BAR / 2.0 - 0.5;
            let _ = writeln!(
                out,
                "<path d=\"M{least:.1} {middle:.1}H{most:.1}M{least:.1} {:.1}v6M{most:.1} {:.1}v6\" stroke=\"black\"/>",
                middle - 3.0,
                middle - 3.0
            );
            text(&mut out, most + 6.0, y + 12.0, "start", "12", &number(one.value.median));
            y += BAR;
        }
        y += GAP;
    }
    out.push_str("</svg>\n");
    out
}

fn heading(row: &Row) -> String {
    if row.unit.is_empty() || row.what.ends_with(row.unit) {
        return row.what.to_owned();
    }
    format!("{} ({})", row.what, row.unit)
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: &str, content: &str) {
    let escaped = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{escaped}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn each_measurement_has_a_bar_and_markup_is_escaped() {
        let svg = svg(&example(), |_| true);
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(svg.contains("Some &lt;Xeon&gt; &amp; co"));
        assert_eq!(self::svg(&example(), |_| false).matches("<rect x=").count(), 0);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn a_report_without_rows_is_still_a_picture() {
        let mut report = example();
        report.rows.clear();
        assert!(svg(&report, |_| true).ends_with("</svg>\n"));
    }
}

//! The report: as JSON for the goals' checker, as a table for people.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::stats::Summary;

/// One contender in one row.
#[derive(Debug)]
pub(crate) struct Measurement {
    /// Who.
    pub(crate) name: String,
    /// Whether that is us.
    pub(crate) ours: bool,
    /// The figure.
    pub(crate) value: Summary,
    /// Share of its core that what is measured used, where that is known; with several cores, of all.
    pub(crate) server_percent: Option<f64>,
    /// The same of what loads it.
    pub(crate) client_percent: Option<f64>,
    /// Why the figure may be in doubt.
    pub(crate) notes: Vec<String>,
}

/// Which way a figure should go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Better {
    /// Costs.
    Lower,
    /// Gains.
    Higher,
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its name, as in the goals.
    pub(crate) what: &'static str,
    /// Of the figures.
    pub(crate) unit: &'static str,
    /// Which way they should go.
    pub(crate) better: Better,
    /// What nobody should expect to pass.
    pub(crate) floor: Option<f64>,
    /// Ours first.
    pub(crate) measurements: Vec<Measurement>,
}

/// All rows of one benchmark.
#[derive(Debug)]
pub(crate) struct Report {
    /// Over the plot.
    pub(crate) title: &'static str,
    /// Whose shares of the CPU the two columns for them have.
    pub(crate) busy: [&'static str; 2],
    /// On what.
    pub(crate) machine: Machine,
    /// In order.
    pub(crate) rows: Vec<Row>,
}

impl Row {
    fn ours(&self) -> Option<&Measurement> {
        self.measurements.iter().find(|measurement| measurement.ours)
    }

    /// How many times better ours is; nothing to say about ours itself.
    fn ours_better_by(&self, rival: &Measurement) -> Option<f64> {
        let (ours, rival) = (self.ours().filter(|_| !rival.ours)?.value.median, rival.value.median);
        let times = match self.better {
            Better::Lower => rival / ours,
            Better::Higher => ours / rival,
        };
        // Of what may be nothing or less there is no ratio.
        (times.is_finite() && times > 0.0).then_some(times)
    }

    fn to_json(&self) -> Value {
        let per_name =
            |value: &dyn Fn(&Measurement) -> Value, of: &dyn Fn(&Measurement) -> bool| -> Map<_, _> {
                self.measurements.iter().filter(|m| of(m)).map(|m| (m.name.clone(), value(m))).collect()
            };
        let percent = |of: &dyn Fn(&Measurement) -> Option<f64>| {
            per_name(&|m| of(m).map_or(Value::Null, rounded), &|m| of(m).is_some())
        };
        let mut row = json!({
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours().map(|m| rounded(m.value.median)),
            "rivals": per_name(&|m| rounded(m.value.median), &|m| !m.ours),
            "spread": per_name(&|m| json!([rounded(m.value.least), rounded(m.value.most)]), &|_| true),
            "server_cpu_percent": percent(&|m| m.server_percent),
            "client_cpu_percent": percent(&|m| m.client_percent),
            "notes": per_name(&|m| json!(m.notes), &|m| !m.notes.is_empty()),
        });
        if let Some(floor) = self.floor {
            row["floor"] = rounded(floor);
        }
        row
    }
}

impl Report {
    /// `{"machine", "kernel", "commit", "date", "rows"}`.
    pub(crate) fn to_json(&self) -> String {
        let value = json!({
            "machine": self.machine.processor,
            "kernel": self.machine.kernel,
            "commit": self.machine.commit,
            "date": self.machine.date,
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        });
        format!("{value:#}\n")
    }
}

/// One decimal, or four where they are all there is: more would be made up.
fn rounded(value: f64) -> Value {
    let digits = if value.abs() < 10.0 { 10_000.0 } else { 10.0 };
    json!((value * digits).round() / digits)
}

/// Small ones with digits after the point, others whole and with a separator of thousands.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let grouped: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|chunk| std::str::from_utf8(chunk).unwrap_or_default())
        .collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, grouped.join(","))
}

/// For people: a line per row and contender.
pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header([
        "",
        "",
        "median",
        "least - most",
        "ours better by",
        report.busy[0],
        report.busy[1],
        "",
    ]);
    for row in &report.rows {
        for (number_in_row, measurement) in row.measurements.iter().enumerate() {
            let Summary { median, least, most } = measurement.value;
            let times = row.ours_better_by(measurement);
            let percent =
                |share: Option<f64>| share.map_or_else(String::new, |share| format!("{share:.0} %"));
            table.add_row([
                if number_in_row == 0 { row.what.to_owned() } else { String::new() },
                measurement.name.clone(),
                format!("{} {}", number(median), row.unit),
                format!("{} - {}", number(least), number(most)),
                times.map_or_else(String::new, |times| format!("{times:.2}x")),
                percent(measurement.server_percent),
                percent(measurement.client_percent),
                measurement.notes.join("; "),
            ]);
        }
    }
    for column in [2, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let Machine { processor, kernel, commit, date } = &report.machine;
    format!("{}, {processor}, Linux {kernel}, {commit}, {date}\n{table}", report.title)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Report {
        let measurement = |name: &str, ours, median: f64| Measurement {
            name: name.to_owned(),
            ours,
            value: Summary { median, least: median * 0.9, most: median * 1.1 },
            server_percent: Some(99.0),
            client_percent: None,
            notes: if ours { Vec::new() } else { vec!["3 frames lost".to_owned()] },
        };
        Report {
            title: "Relay",
            busy: ["server", "clients"],
            machine: Machine {
                processor: "Some <Xeon> & co".to_owned(),
                kernel: "6.18".to_owned(),
                commit: "abc".to_owned(),
                date: "2026-11-22T09:00:00Z".to_owned(),
            },
            rows: vec![Row {
                what: "cpu ns per 1400 B frame, 1 pair, batched",
                unit: "ns",
                better: Better::Lower,
                floor: Some(680.0),
                measurements: vec![
                    measurement("edgelink", true, 1000.04),
                    measurement("plain", false, 6000.0),
                ],
            }],
        }
    }

    #[test]
    fn the_checker_finds_what_it_looks_for() {
        let value: Value = serde_json::from_str(&example().to_json()).expect("JSON");
        let row = &value["rows"][0];
        assert_eq!(row["what"], "cpu ns per 1400 B frame, 1 pair, batched");
        assert_eq!(row["unit"], "ns");
        assert_eq!(row["ours"], 1000.0);
        assert_eq!(row["rivals"], json!({"plain": 6000.0}));
        assert_eq!(row["spread"]["plain"], json!([5400.0, 6600.0]));
        assert_eq!(row["floor"], 680.0);
        assert_eq!(row["server_cpu_percent"]["edgelink"], 99.0);
        assert_eq!(row["client_cpu_percent"], json!({}));
        assert_eq!(value["kernel"], "6.18");
    }

    #[test]
    fn a_row_without_ours_says_so() {
        let mut report = example();
        report.rows[0].measurements.remove(0);
        let value: Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(value["rows"][0]["ours"], Value::Null);
    }

    #[test]
    fn the_table_compares_with_ours() {
        let text = table(&example());
        assert!(
            text.contains("6.00x") && text.contains("6,000 ns") && text.contains("3 frames lost"),
            "{text}"
        );
    }

    #[test]
    fn better_is_more_where_more_is_better() {
        let mut report = example();
        report.rows[0].better = Better::Higher;
        let text = table(&report);
        assert!(text.contains("0.17x"), "{text}");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(0.99651), "0.997");
        assert_eq!(number(1.2), "1.2");
        assert_eq!(number(-1234.0), "-1,234");
        assert_eq!(number(999.0), "999");
        assert_eq!(number(2_500_000.2), "2,500,000");
    }
}

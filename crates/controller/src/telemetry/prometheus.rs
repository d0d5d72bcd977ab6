// SPDX-License-Identifier: Apache-2.0
//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use super::{Family, Form};

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All families as text.
pub(crate) fn render(families: &[Family]) -> String {
    let samples: usize = families.iter().map(|family| family.samples.len()).sum();
    let mut out = String::with_capacity(samples * 96);
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        let form = match family.form {
            Form::Gauge => "gauge",
            Form::Counter => "counter",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {form}", family.name, family.help, family.name);
        for sample in &family.samples {
            out.push_str(family.name);
            for (index, (key, value)) in sample.labels.iter().enumerate() {
                let _ = write!(out, "{}{key}=\"", if index == 0 { '{' } else { ',' });
                escape(value, &mut out);
                out.push('"');
            }
            if !sample.labels.is_empty() {
                out.push('}');
            }
            let _ = writeln!(out, " {}", sample.value);
        }
    }
    out
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Sample;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let sample = |labels: &[(&'static str, &str)], value| Sample {
            labels: labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            value,
        };
        let family = |name, form, samples| Family { name, help: "What it is.", form, unit: "1", samples };
        let text = render(&[
            family("selvedge_controller_uptime_seconds", Form::Gauge, vec![sample(&[], 1.5)]),
            family("selvedge_controller_empty_count", Form::Gauge, vec![]),
            family(
                "selvedge_node_link_received_bytes_total",
                Form::Counter,
                vec![sample(&[("device", "d1"), ("link", "a\"b\\c\nd")], 12_345_678_901.0)],
            ),
        ]);
        expect_test::expect![[r#"
            # HELP selvedge_controller_uptime_seconds What it is.
            # TYPE selvedge_controller_uptime_seconds gauge
            selvedge_controller_uptime_seconds 1.5
            # HELP selvedge_node_link_received_bytes_total What it is.
            # TYPE selvedge_node_link_received_bytes_total counter
            selvedge_node_link_received_bytes_total{device="d1",link="a\"b\\c\nd"} 12345678901
        "#]]
        .assert_eq(&text);
    }
}

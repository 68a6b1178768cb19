//! The table that a run of the bench prints.

use crate::{subject::System, watch::millis};
use standin_tests::Summary;
use std::{collections::BTreeMap, time::Duration};

/// All figures of all runs: rows in order of appearance, then column.
#[derive(Default)]
pub struct Table(Vec<(&'static str, BTreeMap<usize, Vec<f64>>)>);

impl Table {
    /// One more figure.
    pub fn note(&mut self, row: &'static str, column: usize, value: f64) {
        let table = &mut self.0;
        let at = table
            .iter()
            .position(|(name, _)| *name == row)
            .unwrap_or_else(|| {
                table.push((row, BTreeMap::new()));
                table.len() - 1
            });
        table[at].1.entry(column).or_default().push(value);
    }

    /// In Markdown, with ratios of the pairs that are alike, and the longest stall of the machine per column.
    pub fn print(&self, columns: &[System], worst: &[Duration]) {
        println!(
            "\nmedian (minimum..maximum); ratio = keepalived 1 s : standin default, keepalived 10 ms : standin fast\n"
        );
        let titles: Vec<_> = columns.iter().map(|s| s.title).collect();
        println!(
            "| scenario | {} | ratio |\n|---|{}---|",
            titles.join(" | "),
            "---|".repeat(columns.len())
        );
        for (row, cells) in &self.0 {
            let summary = |column: usize| cells.get(&column).map(|values| Summary::of(values));
            let texts: Vec<_> = (0..columns.len())
                .map(|c| summary(c).map_or("-".to_owned(), |s| s.to_string()))
                .collect();
            let median =
                |key: &str| summary(columns.iter().position(|s| s.key == key)?).map(|s| s.median);
            let ratio = |theirs: &str, ours: &str| match (median(theirs), median(ours)) {
                (Some(theirs), Some(ours)) if ours > 0.0 => format!("{:.1}", theirs / ours),
                (Some(theirs), Some(_)) if theirs > 0.0 => "all".to_owned(),
                _ => "-".to_owned(),
            };
            println!(
                "| {row} | {} | {}, {} |",
                texts.join(" | "),
                ratio("k1s", "default"),
                ratio("k10", "fast")
            );
        }
        let stalls: Vec<_> = worst.iter().map(|w| format!("{:.1}", millis(*w))).collect();
        println!(
            "| longest stall of this machine, ms | {} | |",
            stalls.join(" | ")
        );
    }
}

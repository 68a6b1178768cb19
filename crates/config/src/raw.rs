//! The file as written: sections and keys with their lines, read one by one so that every problem can
//! name its place.

use crate::error::{ConfigError, Problem};
use std::{cell::RefCell, ops::Range, path::Path, str::FromStr, time::Duration};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The file, and the problems found in it so far.
pub(crate) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            text,
            problems: RefCell::new(Vec::new()),
        }
    }

    pub(crate) fn report(&self, at: Option<Range<usize>>, key: String, what: String) {
        let line = at.map(|at| self.line(at.start));
        let problem = Problem {
            file: self.file.to_owned(),
            line,
            key,
            what,
        };
        self.problems.borrow_mut().push(problem);
    }

    /// The problems in the order of their lines, or `value` if there are none.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| p.line);
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(ConfigError { problems }),
        }
    }

    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|b| *b == b'\n')
            .count()
    }
}

/// One table of the file.
pub(crate) struct Section<'a> {
    source: &'a Source<'a>,
    /// As the operator wrote it: `[cluster]`, `[[server]] alpha`.
    heading: String,
    at: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(source: &'a Source<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            source,
            heading: String::new(),
            at: 0..0,
            table,
        }
    }

    /// Says that `key` of this section is wrong.
    pub(crate) fn report(&self, key: &str, what: impl Into<String>) {
        let at = self.get(key).map_or_else(|| self.at.clone(), Spanned::span);
        self.report_at(at, key, what);
    }

    pub(crate) fn report_at(&self, at: Range<usize>, key: &str, what: impl Into<String>) {
        let at = (!self.heading.is_empty() || at.end > 0).then_some(at);
        let key = [self.heading.as_str(), key].join(" ").trim().to_owned();
        self.source.report(at, key, what.into());
    }

    /// Reports every key that is none of `known`.
    pub(crate) fn only(&self, known: &[&str]) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let mend = match nearest(name, known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.report_at(key.span(), name, format!("unknown key; {mend}"));
        }
    }

    /// The table `key`, if the file has it.
    pub(crate) fn table(&self, key: &str) -> Option<Section<'a>> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, &format!("a section; write [{key}]"));
            return None;
        };
        let heading = if self.heading.is_empty() {
            format!("[{key}]")
        } else {
            format!("{} {key}", self.heading)
        };
        Some(Section {
            source: self.source,
            heading,
            at: value.span(),
            table,
        })
    }

    /// The tables `[[key]]`, each headed by its name.
    pub(crate) fn tables(&self, key: &str) -> Vec<Section<'a>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(
                key,
                value,
                &format!("a list; write [[{key}]] with two brackets"),
            );
            return Vec::new();
        };
        let section = |value: &'a Spanned<DeValue<'a>>| {
            let Some(table) = value.get_ref().as_table() else {
                self.wrong_type(key, value, &format!("a section; write [[{key}]]"));
                return None;
            };
            let name = table
                .get("name")
                .and_then(|n| n.get_ref().as_str())
                .unwrap_or("");
            let heading = format!("[[{key}]] {name}").trim().to_owned();
            Some(Section {
                source: self.source,
                heading,
                at: value.span(),
                table,
            })
        };
        array.iter().filter_map(section).collect()
    }

    pub(crate) fn text(&self, key: &str) -> Option<Spanned<&'a str>> {
        let value = self.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a text in quotes");
            return None;
        };
        Some(Spanned::new(value.span(), text))
    }

    /// A list of texts; a single text counts as a list of one.
    pub(crate) fn texts(&self, key: &str) -> Vec<Spanned<&'a str>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        if let Some(text) = value.get_ref().as_str() {
            return vec![Spanned::new(value.span(), text)];
        }
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of texts: [\"...\", \"...\"]");
            return Vec::new();
        };
        let text = |value: &'a Spanned<DeValue<'a>>| {
            let text = value.get_ref().as_str();
            if text.is_none() {
                self.wrong_type(key, value, "a text in quotes");
            }
            Some(Spanned::new(value.span(), text?))
        };
        array.iter().filter_map(text).collect()
    }

    pub(crate) fn truth(&self, key: &str, default: bool) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "true or false");
            default
        })
    }

    pub(crate) fn number(&self, key: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let value = self.get(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a number without quotes");
            return None;
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|n| range.contains(n));
        if number.is_none() {
            let (low, high) = range.into_inner();
            let what = format!(
                "{} is out of range; write {low} to {high}",
                integer.as_str()
            );
            self.report(key, what);
        }
        number
    }

    pub(crate) fn duration(&self, key: &str, default: Duration) -> Duration {
        let Some(text) = self.text_of_duration(key) else {
            return default;
        };
        humantime::parse_duration(text.get_ref()).unwrap_or_else(|_| {
            let what = format!(
                "\"{}\" is no duration; write a number with its unit, such as \"100ms\" or \"2s\"",
                text.get_ref()
            );
            self.report(key, what);
            default
        })
    }

    /// A text that `T` understands, or `default` with the reason reported.
    pub(crate) fn parsed<T: FromStr>(&self, key: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(key)?;
        text.get_ref()
            .parse()
            .map_err(|e: T::Err| self.report(key, e.to_string()))
            .ok()
    }

    /// Reports `key` as missing; `mend` is what to write.
    pub(crate) fn required(&self, key: &str, mend: &str) {
        if self.get(key).is_none() {
            self.report(key, format!("missing; write {mend}"));
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> {
        self.table.keys().map(|k| (k.get_ref().as_ref(), k.span()))
    }

    /// The line of its heading.
    pub(crate) fn line(&self) -> usize {
        self.source.line(self.at.start)
    }

    /// The lines of what was read from it.
    pub(crate) fn lines<T>(&self, values: &[Spanned<T>]) -> Vec<usize> {
        let lines = values.iter().map(|v| self.source.line(v.span().start));
        lines.collect()
    }

    pub(crate) fn is_text(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|v| v.get_ref().as_str().is_some())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn text_of_duration(&self, key: &str) -> Option<Spanned<&'a str>> {
        let value = self.get(key)?;
        if value.get_ref().as_integer().is_some() {
            self.wrong_type(
                key,
                value,
                "a number with its unit in quotes, such as \"100ms\"",
            );
            return None;
        }
        self.text(key)
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table.get(key)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a section",
        };
        self.report_at(
            value.span(),
            key,
            format!("expected {expected}; found {found}"),
        );
    }
}

/// The known key that differs least from `name`, if any is near.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|k| (distance(name, k), *k)).min()?;
    (near.0 <= 1 + name.len() / 4).then_some(near.1)
}

/// Letters to insert, delete or replace to make one text of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let here = (corner + usize::from(x != y)).min(left + 1).min(*cell + 1);
            corner = std::mem::replace(cell, here);
            left = here;
        }
        row[0] = i + 1;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_letters() {
        for (a, b, expected) in [
            ("lease", "lease", 0),
            ("leese", "lease", 1),
            ("heartbeet", "heartbeat", 1),
            ("", "key", 3),
            ("prot", "port", 2),
            ("name", "address", 6),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_key_is_suggested() {
        assert_eq!(
            nearest("hartbeat", &["heartbeat", "lease"]),
            Some("heartbeat")
        );
        assert_eq!(nearest("colour", &["heartbeat", "lease"]), None);
    }
}

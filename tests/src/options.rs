//! The command line of the comparisons: pairs of an option and its value.

use std::{env, str::FromStr};

/// What was given for an option.
pub struct Value<'a> {
    option: String,
    text: String,
    usage: &'a str,
}

impl Value<'_> {
    fn wrong(&self, why: &str) -> String {
        let Self {
            option,
            text,
            usage,
        } = self;
        format!("{option} {text}: {why}\n{usage}")
    }

    /// As a number.
    pub fn number<N: FromStr>(&self) -> Result<N, String> {
        let number = self.text.parse();
        number.map_err(|_| self.wrong("a number is needed"))
    }

    /// As a list of names, each of which must be known.
    pub fn names(&self, known: &[&str]) -> Result<Option<Vec<String>>, String> {
        let names: Vec<_> = self.text.split(',').map(str::to_owned).collect();
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            Some(strange) => Err(self.wrong(&format!("{strange} is not known"))),
            None => Ok(Some(names)),
        }
    }
}

/// Gives `take` each option of this program's, with its value; it says whether it knows it.
pub fn options(
    usage: &str,
    take: impl FnMut(&str, &Value<'_>) -> Result<bool, String>,
) -> Result<(), String> {
    of(env::args().skip(1), usage, take)
}

fn of(
    mut words: impl Iterator<Item = String>,
    usage: &str,
    mut take: impl FnMut(&str, &Value<'_>) -> Result<bool, String>,
) -> Result<(), String> {
    while let Some(option) = words.next() {
        let text = words.next().ok_or(usage)?;
        let value = Value {
            option: option.clone(),
            text,
            usage,
        };
        if !take(&option, &value)? {
            return Err(value.wrong("no such option"));
        }
    }
    Ok(())
}

/// Whether a list names this; without a list, whether it is usual.
pub fn wanted(list: Option<&Vec<String>>, name: &str, usual: bool) -> bool {
    list.map_or(usual, |l| l.iter().any(|one| one == name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(u32, Option<Vec<String>>), String> {
        let mut read = (5, None);
        let words = line.split_whitespace().map(str::to_owned);
        of(words, "how to", |option, value| {
            match option {
                "--runs" => read.0 = value.number()?,
                "--works" => read.1 = value.names(&["one", "two"])?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(read)
    }

    #[test]
    fn options_are_pairs_and_what_is_not_known_is_told_with_the_usage() {
        assert_eq!(read("").unwrap(), (5, None));
        let (runs, works) = read("--works two,one --runs 3").unwrap();
        assert_eq!(
            (runs, works.unwrap()),
            (3, vec!["two".into(), "one".into()])
        );
        for (line, why) in [
            ("--runs", "how to"),
            ("--runs x", "--runs x: a number"),
            ("--works one,three", "three is not known"),
            ("--help me", "no such option"),
        ] {
            let told = read(line).unwrap_err();
            assert!(told.contains(why) && told.contains("how to"), "{told}");
        }
    }

    #[test]
    fn without_a_list_the_usual_is_wanted() {
        let list = vec!["one".to_owned()];
        assert!(wanted(None, "one", true) && !wanted(None, "one", false));
        assert!(wanted(Some(&list), "one", false) && !wanted(Some(&list), "two", true));
    }
}

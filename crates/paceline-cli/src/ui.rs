//! Output: data to stdout, words to stderr. Colours on terminals only; notes are left out where nobody would see them.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::{
    args::{Args, ColorChoice},
    failure::Failure,
};

/// Where output goes and how it looks.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// One JSON document instead of text.
    pub json: bool,
    notes: bool,
    terminal: bool,
    color: bool,
    color_err: bool,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy)]
pub enum Style {
    /// Names of things.
    Dim,
    /// What one looks for.
    Bold,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
}

impl Ui {
    /// Looks at the command line, the environment and the terminals.
    pub fn of(args: &Args) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let plain = set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wanted = |terminal: bool| match args.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !plain,
        };
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            json: args.json,
            notes: err,
            terminal: out,
            color: wanted(out) && !args.json,
            color_err: wanted(err),
        }
    }

    /// Whether somebody looks at stdout.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The one document of a command, or one line of a followed list.
    pub fn document(&self, document: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(document).map_err(|error| Failure::failed(error.to_string()))?;
        text.push(b'\n');
        self.raw(&text)
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Bytes of data.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::failed(format!("write the output: {error}")),
        })
    }

    /// A note for whoever sits at the terminal.
    pub fn note(&self, text: &str) {
        if self.notes {
            self.say(&self.on_err(Style::Dim, text));
        }
    }

    /// Words that are said in any case.
    pub fn say(&self, text: &str) {
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// The failure of the command.
    pub fn failed(&self, failure: &Failure) {
        if let Failure::Command { said, .. } = failure {
            // Nobody is left to be told if this fails.
            let _ = io::stderr().lock().write_all(said);
        }
        if !failure.is_silent() {
            self.say(&format!("{} {failure}", self.on_err(Style::Bad, "paceline:")));
        }
    }

    /// Text for stdout.
    pub fn paint(&self, style: Style, text: &str) -> String {
        paint(self.color, style, text)
    }

    /// Text for stderr.
    pub fn on_err(&self, style: Style, text: &str) -> String {
        paint(self.color_err, style, text)
    }

    /// Prints rows under a heading, in columns as wide as their widest cell.
    pub fn table(&self, heading: &[&str], rows: &[Vec<Cell>]) -> Result<(), Failure> {
        let widths = widths(heading, rows);
        let heading: Vec<Cell> = heading.iter().map(|name| Cell::new(*name).style(Style::Dim)).collect();
        self.row(&heading, &widths)?;
        rows.iter().try_for_each(|row| self.row(row, &widths))
    }

    /// Goes on with a table whose heading was printed.
    pub fn table_without_heading(&self, heading: &[&str], rows: &[Vec<Cell>]) -> Result<(), Failure> {
        let widths = widths(heading, rows);
        rows.iter().try_for_each(|row| self.row(row, &widths))
    }

    fn row(&self, row: &[Cell], widths: &[usize]) -> Result<(), Failure> {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let padding = " ".repeat(width - width_of(&cell.text));
            line += &cell.style.map_or_else(|| cell.text.clone(), |style| self.paint(style, &cell.text));
            line += &padding;
            line += "  ";
        }
        self.line(line.trim_end())
    }
}

fn widths(heading: &[&str], rows: &[Vec<Cell>]) -> Vec<usize> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| width_of(&cell.text));
        cells.chain([width_of(heading[column])]).max().unwrap_or(0)
    };
    (0..heading.len()).map(width).collect()
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Option<Style>,
}

impl Cell {
    /// A plain cell.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: one_line(&text.into()), style: None }
    }

    /// With a look.
    pub fn style(mut self, style: Style) -> Self {
        self.style = Some(style);
        self
    }
}

/// Text of others, without what a terminal would obey.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn width_of(text: &str) -> usize {
    text.chars().count()
}

fn paint(color: bool, style: Style, text: &str) -> String {
    if !color || text.is_empty() {
        return text.to_owned();
    }
    let code = match style {
        Style::Dim => "2",
        Style::Bold => "1",
        Style::Good => "32",
        Style::Warn => "33",
        Style::Bad => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A duration as one reads it at a glance.
pub fn ago(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000..86_400_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!(ago(12), "12 ms");
        assert_eq!(ago(2_340), "2.3 s");
        assert_eq!(ago(125_000), "2 min 5 s");
        assert_eq!(ago(90_000_000), "1 d 1 h");
    }

    #[test]
    fn a_label_cannot_steer_the_terminal() {
        assert_eq!(one_line("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}

//! docs/PROTOCOL.md says what the code says: its table of limits is written from the constants and their comments, and
//! it names each message. So does docs/CONFIG.md, whose tables of keys are written from the tables of the language.

use std::{collections::BTreeMap, env, fs};

use crate::{root, text};

const SOURCE: &str = "crates/paceline-proto/src/limits.rs";
const DOCUMENT: &str = "docs/PROTOCOL.md";
const BEGIN: &str = "<!-- limits: written from crates/paceline-proto/src/limits.rs by `just bless` -->\n";
const END: &str = "<!-- end of limits -->";

/// A constant: a number, a number of bytes, or nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Count(u128),
    Bytes(u128),
    Nanos(u128),
}

#[test]
fn the_limits_table_is_the_code() {
    let document = text(DOCUMENT);
    let (before, rest) = document.split_once(BEGIN).expect("the table's beginning is marked");
    let (table, after) = rest.split_once(END).expect("the table's end is marked");
    let wanted = render(&text(SOURCE));
    if env::var_os("PACELINE_BLESS").is_some() {
        fs::write(root().join(DOCUMENT), format!("{before}{BEGIN}{wanted}{END}{after}")).expect("written");
        return;
    }
    assert!(table == wanted, "{DOCUMENT} is behind {SOURCE}; `just bless` writes it anew. Wanted:\n{wanted}");
}

#[test]
fn the_tables_of_keys_are_the_code() {
    let path = "docs/CONFIG.md";
    let document = text(path);
    let begin = "<!-- keys: written from crates/paceline-config by `just bless` -->\n";
    let end = "<!-- end of keys -->";
    let (before, rest) = document.split_once(begin).expect("the tables' beginning is marked");
    let (tables, after) = rest.split_once(end).expect("the tables' end is marked");
    let wanted = paceline::config::markdown();
    if env::var_os("PACELINE_BLESS").is_some() {
        fs::write(root().join(path), format!("{before}{begin}{wanted}{end}{after}")).expect("written");
        return;
    }
    assert!(tables == wanted, "{path} is behind the code; `just bless` writes it anew. Wanted:\n{wanted}");
    for (variable, key) in paceline::config::VARIABLES {
        assert!(before.contains(&format!("| `{variable}` | `{key}` |")), "{path} does not name {variable}");
    }
}

#[test]
fn each_form_of_constant_is_understood() {
    let source = "/// A cap,\n/// in bytes.\npub const A: usize = 1 << 20;\n\
        /// B.\npub const B: usize = A + 64;\n/// C.\npub const C: u64 = 10_000;\n\
        /// D | E.\npub const D: Duration = Duration::from_millis(1500);\npub const UNEXPLAINED: u32 = 3;\n";
    let wanted = "| Limit | Value | Why |\n|---|---|---|\n| `A` | 1 MiB | A cap, in bytes. |\n\
        | `B` | 1048640 B | B. |\n| `C` | 10,000 | C. |\n| `D` | 1500 ms | D \\| E. |\n| `UNEXPLAINED` | 3 |  |\n";
    assert_eq!(render(source), wanted);
}

#[test]
fn every_message_is_described() {
    let source = text("crates/paceline-proto/src/message.rs");
    let document = text(DOCUMENT);
    for (direction, heading) in [("ToHub", "### From a session"), ("ToSession", "### From the primary")] {
        let (_, part) = document.split_once(heading).expect("the part for this direction");
        let part = part.split("\n#").next().unwrap_or_default();
        let variants = variants(&source, direction);
        assert!(variants.len() > 10, "{direction} was not read: {variants:?}");
        let missing: Vec<_> =
            variants.iter().filter(|variant| !part.contains(&format!("`{variant}`"))).collect();
        assert!(missing.is_empty(), "{DOCUMENT} does not describe {missing:?} of {direction}");
    }
}

/// Names of an enum's variants.
fn variants<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum");
    let body = body.split("\n}").next().unwrap_or_default();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = lines.filter(|line| line.starts_with(char::is_uppercase));
    names.map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()).collect()
}

fn render(source: &str) -> String {
    let mut table = "| Limit | Value | Why |\n|---|---|---|\n".to_owned();
    let mut known = BTreeMap::new();
    let mut why: Vec<&str> = Vec::new();
    for line in source.lines() {
        if let Some(comment) = line.strip_prefix("/// ") {
            why.push(comment);
        } else if let Some(constant) = line.strip_prefix("pub const ") {
            let (name, expression) = constant
                .split_once(':')
                .and_then(|(name, rest)| Some((name, rest.split_once('=')?.1.trim().trim_end_matches(';'))))
                .unwrap_or_else(|| panic!("not understood: {line}"));
            let value = evaluate(expression, &known).unwrap_or_else(|| panic!("not understood: {line}"));
            known.insert(name.to_owned(), value);
            table += &format!("| `{name}` | {} | {} |\n", show(value), why.join(" ").replace('|', "\\|"));
            why.clear();
        } else {
            why.clear();
        }
    }
    table
}

fn evaluate(expression: &str, known: &BTreeMap<String, Value>) -> Option<Value> {
    if let Some((left, right)) = expression.split_once(" + ") {
        return match (evaluate(left, known)?, evaluate(right, known)?) {
            (Value::Nanos(a), Value::Nanos(b)) => Some(Value::Nanos(a + b)),
            (Value::Bytes(a), Value::Bytes(b) | Value::Count(b)) => Some(Value::Bytes(a + b)),
            (Value::Count(a), Value::Count(b)) => Some(Value::Count(a + b)),
            _ => None,
        };
    }
    if let Some((left, right)) = expression.split_once(" << ") {
        return Some(Value::Bytes(number(left)? << number(right)?));
    }
    for (call, nanos) in [("micros", 1_000), ("millis", 1_000_000), ("secs", 1_000_000_000)] {
        let inner = expression
            .strip_prefix(&format!("Duration::from_{call}("))
            .and_then(|rest| rest.strip_suffix(')'));
        if let Some(inner) = inner {
            return Some(Value::Nanos(number(inner)? * nanos));
        }
    }
    known.get(expression).copied().or_else(|| number(expression).map(Value::Count))
}

fn number(text: &str) -> Option<u128> {
    text.replace('_', "").parse().ok()
}

fn show(value: Value) -> String {
    let whole = |n: u128, unit: u128| n != 0 && n.is_multiple_of(unit);
    match value {
        Value::Bytes(n) if whole(n, 1 << 20) => format!("{} MiB", n >> 20),
        Value::Bytes(n) if whole(n, 1 << 10) => format!("{} KiB", n >> 10),
        Value::Bytes(n) => format!("{n} B"),
        Value::Nanos(n) if whole(n, 1_000_000_000) => format!("{} s", n / 1_000_000_000),
        Value::Nanos(n) if whole(n, 1_000_000) => format!("{} ms", n / 1_000_000),
        Value::Nanos(n) => format!("{} µs", n / 1_000),
        Value::Count(n) if n >= 10_000 => format!("{},{:03}", n / 1000, n % 1000),
        Value::Count(n) => n.to_string(),
    }
}

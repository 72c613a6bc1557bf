//! Whatever is done to one key or value of the example: it is still a configuration, or what is wrong is told with line
//! and key; nothing panics.

use std::ops::Range;

use paceline_config::{Capabilities, Config, ConfigError, Draft, ProblemKind, Source};
use proptest::prelude::*;
use toml::de::{DeTable, DeValue};

const EXAMPLE: &str = include_str!("../../../examples/paceline.toml");

fn read(text: &str) -> Result<Config, ConfigError> {
    Draft::new([Source::named("f", text)])?.validate(&Capabilities::all())
}

/// Where keys and values stand in the example.
fn places(keys: &mut Vec<Range<usize>>, values: &mut Vec<Range<usize>>, value: &DeValue<'_>) {
    match value {
        DeValue::Table(table) => table_places(keys, values, table),
        DeValue::Array(items) => {
            for item in items.iter() {
                values.push(item.span());
                places(keys, values, item.get_ref());
            }
        }
        _ => {}
    }
}

fn table_places(keys: &mut Vec<Range<usize>>, values: &mut Vec<Range<usize>>, table: &DeTable<'_>) {
    for (key, value) in table.iter() {
        keys.push(key.span());
        // The span of a table with a header is its header.
        if !EXAMPLE[value.span()].starts_with('[') || matches!(value.get_ref(), DeValue::Array(_)) {
            values.push(value.span());
        }
        places(keys, values, value.get_ref());
    }
}

fn all_places() -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let table = DeTable::parse(EXAMPLE).expect("the example is TOML");
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    table_places(&mut keys, &mut values, table.get_ref());
    (keys, values)
}

fn with(place: &Range<usize>, text: &str) -> String {
    format!("{}{text}{}", &EXAMPLE[..place.start], &EXAMPLE[place.end..])
}

/// What must hold for every text; whether it is refused.
fn check(text: &str) -> Result<(), ConfigError> {
    match read(text) {
        Ok(config) => {
            let again =
                read(&config.to_toml()).unwrap_or_else(|error| panic!("{error}\n{}", config.to_toml()));
            assert_eq!(again.declared().root(), config.declared().root(), "{text}");
            assert_eq!(again.to_toml(), config.to_toml());
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            for problem in &error.problems {
                let (line, column) = problem.origin.place().unwrap_or_else(|| panic!("no place: {problem}"));
                assert!(line >= 1 && line <= text.lines().count() + 1 && column >= 1, "{problem}");
                assert!(problem.kind == ProblemKind::Syntax || !problem.key.is_empty(), "{problem}");
                assert!(!problem.what.is_empty());
            }
            return Err(error);
        }
    }
    Ok(())
}

#[test]
fn every_misspelt_key_is_told_its_right_name() {
    let (keys, _) = all_places();
    let mut told = 0;
    for key in &keys {
        let name = &EXAMPLE[key.clone()];
        if name.starts_with('"') {
            continue;
        }
        let Err(error) = check(&with(key, &format!("{name}x"))) else { continue };
        let line = EXAMPLE[..key.start].matches('\n').count() + 1;
        let unknown = error.problems.iter().filter(|problem| {
            problem.kind == ProblemKind::UnknownKey
                && problem.origin.place().is_some_and(|place| place.0 == line)
        });
        for problem in unknown {
            assert_eq!(problem.nearest.as_deref(), Some(name), "{problem}");
            told += 1;
            let others: Vec<&str> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
            assert_eq!(others.len(), 1, "one mistake, one problem: {error}");
        }
    }
    assert!(told > 270, "{told} of {} keys", keys.len());
}

#[test]
fn a_value_of_another_type_is_refused_at_its_place() {
    let (_, values) = all_places();
    assert!(values.len() > 200, "{}", values.len());
    let others = [
        "true",
        "-1",
        "1.5",
        "\"\"",
        "\"\\u0000\"",
        "[]",
        "{}",
        "1979-05-27",
        "[[1]]",
        "{ a = 1 }",
        "\"$.\"",
        "\"{\"",
        "nan",
    ];
    let (mut refused, mut tried) = (0, 0);
    for (n, value) in values.iter().enumerate() {
        // Each value meets some of them, neighbours different ones.
        for other in others.iter().skip(n % 6).step_by(6) {
            tried += 1;
            refused += usize::from(check(&with(value, other)).is_err());
        }
    }
    assert!(refused * 10 > tried * 7, "{refused} of {tried}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_key_or_value_replaced(at in any::<prop::sample::Index>(), is_key in any::<bool>(), text in replacement()) {
        let (keys, values) = all_places();
        let _ = check(&with(at.get(if is_key { &keys } else { &values }), &text));
    }

    #[test]
    fn one_character_changed(at in any::<prop::sample::Index>(), c in any::<char>(), how in 0..3) {
        let starts: Vec<(usize, char)> = EXAMPLE.char_indices().collect();
        let (start, old) = *at.get(&starts);
        let end = start + old.len_utf8();
        let _ = check(&match how {
            0 => with(&(start..end), ""),
            1 => with(&(start..end), &c.to_string()),
            _ => with(&(start..start), &c.to_string()),
        });
    }

    #[test]
    fn any_text(text in ".{0,200}") {
        let _ = check(&text);
    }
}

fn replacement() -> impl Strategy<Value = String> {
    let fixed = prop::sample::select(vec![
        "0",
        "1",
        "9223372036854775807",
        "-9223372036854775808",
        "0x10",
        "1e308",
        "inf",
        "\"0s\"",
        "\"1ms\"",
        "\"3650d\"",
        "\"never\"",
        "\"stop\"",
        "\"closure\"",
        "\"keep\"",
        "\"poll\"",
        "\"feed\"",
        "\"$\"",
        "\"$$x\"",
        "\"{id}\"",
        "\"{secret:api}\"",
        "\"..\"",
        "[\"a\", \"..\"]",
        "[\"..\"]",
        "'error'",
        "'any($, empty($))'",
        "\"https://h/\"",
        "\"1MiB\"",
    ]);
    prop_oneof![
        fixed.prop_map(str::to_owned),
        "[a-z_]{1,8}",
        "[a-z\"$.{}:0-9 ]{0,10}".prop_map(|text| format!("'{text}'")),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
    ]
}

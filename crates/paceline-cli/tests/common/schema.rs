//! The part of JSON Schema that `docs/schemas/` uses. A keyword that is not known here is an error, so that no schema
//! promises what nobody checks.

use serde_json::{Map, Value};

/// What does not fit, or nothing.
pub fn errors(schema: &Value, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check(schema, value, "$", &mut errors);
    errors
}

fn check(schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        if *schema != Value::Bool(true) {
            errors.push(format!("{at}: no schema allows {value}"));
        }
        return;
    };
    for (keyword, wanted) in keywords {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" => true,
            "type" => has_type(wanted, value),
            "const" => wanted == value,
            "enum" => list(wanted).contains(value),
            "minimum" => {
                value.as_f64().is_none_or(|number| wanted.as_f64().is_some_and(|least| number >= least))
            }
            "minLength" => {
                length(value).is_none_or(|length| wanted.as_u64().is_some_and(|least| length >= least))
            }
            "maxLength" => {
                length(value).is_none_or(|length| wanted.as_u64().is_some_and(|most| length <= most))
            }
            "minItems" => value
                .as_array()
                .is_none_or(|items| wanted.as_u64().is_some_and(|least| items.len() as u64 >= least)),
            "format" => wanted == "date-time" && value.as_str().is_none_or(is_time),
            "oneOf" => list(wanted).iter().filter(|one| self::errors(one, value).is_empty()).count() == 1,
            "required" => value.as_object().is_none_or(|object| {
                list(wanted).iter().filter_map(Value::as_str).all(|name| object.contains_key(name))
            }),
            "additionalProperties" => {
                *wanted == Value::Bool(false)
                    && value.as_object().is_none_or(|object| knows(keywords, object))
            }
            "properties" => {
                for (name, schema) in wanted.as_object().expect("properties") {
                    if let Some(value) = value.get(name) {
                        check(schema, value, &format!("{at}.{name}"), errors);
                    }
                }
                true
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(wanted, item, &format!("{at}[{n}]"), errors);
                }
                true
            }
            other => panic!("the keyword {other:?} is not checked"),
        };
        if !fits {
            errors.push(format!("{at}: {keyword} {wanted} does not allow {value}"));
        }
    }
}

fn knows(keywords: &Map<String, Value>, object: &Map<String, Value>) -> bool {
    object.keys().all(|name| keywords["properties"].get(name).is_some())
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    match wanted {
        Value::Array(types) => types.iter().any(|one| has_type(one, value)),
        one => match one.as_str().expect("the name of a type") {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("the type {other:?} is not known"),
        },
    }
}

/// `2026-11-25T13:39:07.769Z`
fn is_time(text: &str) -> bool {
    let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
    text.chars().map(shape).collect::<String>() == "0000-00-00T00:00:00.000Z"
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

#[test]
fn what_does_not_fit_is_found() {
    let schema = serde_json::json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": { "a": { "type": ["integer", "null"], "minimum": 0 }, "b": { "enum": ["x", "y"] } },
    });
    let fits = |value: Value| errors(&schema, &value).is_empty();
    assert!(fits(serde_json::json!({ "a": 1, "b": "x" })) && fits(serde_json::json!({ "a": null })));
    for wrong in [r#"{}"#, r#"{"a":"1"}"#, r#"{"a":-1}"#, r#"{"a":1,"b":"z"}"#, r#"{"a":1,"c":1}"#, "[]"] {
        assert!(!fits(serde_json::from_str(wrong).expect("JSON")), "{wrong}");
    }
}

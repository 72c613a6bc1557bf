//! JSON numbers by value: 7, 7.0 and 7e0 are one number, and integers of 64 bits are exact.

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// Floating-point numbers below this magnitude that have no fraction are exact integers of 64 bits.
const INTEGER_BOUND: f64 = 18_446_744_073_709_551_616.0;

/// The integer that a number is, if it is one between -2⁶³ and 2⁶⁴-1.
pub fn integer(number: &Number) -> Option<i128> {
    if let Some(small) = number.as_i64() {
        return Some(small.into());
    }
    if let Some(large) = number.as_u64() {
        return Some(large.into());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < INTEGER_BOUND)?;
    let whole = float as i128;
    (whole >= i128::from(i64::MIN)).then_some(whole)
}

/// The order of two numbers; `None` where one of the values is no number.
pub fn compare(one: &Value, two: &Value) -> Option<Ordering> {
    let (Value::Number(one), Value::Number(two)) = (one, two) else { return None };
    match (integer(one), integer(two)) {
        (Some(one), Some(two)) => Some(one.cmp(&two)),
        _ => one.as_f64()?.partial_cmp(&two.as_f64()?),
    }
}

/// Equal JSON, numbers by value at every depth.
pub fn equal(one: &Value, two: &Value) -> bool {
    match (one, two) {
        (Value::Number(_), Value::Number(_)) => compare(one, two) == Some(Ordering::Equal),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| equal(a, b)))
        }
        _ => one == two,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_compare_by_value_and_exactly() {
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for (one, two, order) in [
            ("7", "7.0", Ordering::Equal),
            ("-0.0", "0", Ordering::Equal),
            ("9007199254740993", "9007199254740992.0", Ordering::Greater),
            ("18446744073709551615", "18446744073709551614", Ordering::Greater),
            ("18446744073709551615", "-1", Ordering::Greater),
            ("-9223372036854775808", "-9223372036854775808.0", Ordering::Equal),
            ("1e300", "18446744073709551615", Ordering::Greater),
            ("0.5", "1", Ordering::Less),
        ] {
            assert_eq!(compare(&value(one), &value(two)), Some(order), "{one} {two}");
            assert_eq!(compare(&value(two), &value(one)), Some(order.reverse()), "{two} {one}");
        }
        assert_eq!(compare(&json!(1), &json!("1")), None);
    }

    #[test]
    fn equality_reaches_into_lists_and_objects() {
        assert!(equal(&json!({"a":[1,{"b":2.0}]}), &json!({"a":[1.0,{"b":2}]})));
        assert!(!equal(&json!({"a":1}), &json!({"b":1})));
        assert!(!equal(&json!([1]), &json!([1, null])));
        assert!(!equal(&json!("1"), &json!(1)));
    }
}

//! Keys and JSON in configuration.

use paceline_query::pattern::KeyPattern;
use serde_json::Value;

use crate::{
    node::{Data, Node},
    reader::{Field, Reader},
};

/// Nesting of lists and tables in a JSON value.
const DEPTH_MAX: usize = 16;

/// The keys of a resource: `{name}` binds, `".."` at the end stands for any further segments.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceKey(KeyPattern);

/// A key to be filled: texts that are paths yield what they lead to, `{name}` is filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyTemplate(Value);

/// A JSON value whose texts may be paths.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeValue(Value);

impl ResourceKey {
    /// The keys that begin with the parts of a resource's name: `process.list` is `["process", "list", ".."]`.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let segments: Vec<Value> = name.split('.').chain([".."]).map(Value::from).collect();
        KeyPattern::new(&segments).ok().map(Self)
    }

    /// The pattern.
    pub const fn pattern(&self) -> &KeyPattern {
        &self.0
    }
}

impl KeyTemplate {
    /// As a JSON array.
    pub const fn json(&self) -> &Value {
        &self.0
    }
}

impl MergeValue {
    /// As JSON.
    pub const fn json(&self) -> &Value {
        &self.0
    }
}

/// The JSON that a node is; a problem for what has no JSON.
fn json(node: &Node, reader: &mut Reader<'_>, depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        reader.odd(node, "nests too deeply", format!("at most {DEPTH_MAX} levels"));
        return None;
    }
    match &node.data {
        Data::Bool(flag) => Some((*flag).into()),
        Data::Integer(number) => Some((*number).into()),
        Data::Float(number) => Some((*number).into()),
        Data::Text(text) | Data::Raw(text) => Some(text.as_str().into()),
        Data::Date(_) => {
            reader.invalid(node, "JSON, which has no dates; write it as a text");
            None
        }
        Data::List(items) => {
            let items: Vec<Option<Value>> = items
                .iter()
                .enumerate()
                .map(|(n, item)| reader.inside(&format!("[{n}]"), |reader| json(item, reader, depth + 1)))
                .collect();
            items.into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
        }
        Data::Table(members) => {
            let mut object = serde_json::Map::new();
            let mut whole = true;
            for (name, member) in members {
                match reader.inside(name, |reader| json(&member.node, reader, depth + 1)) {
                    Some(value) => drop(object.insert(name.clone(), value)),
                    None => whole = false,
                }
            }
            whole.then_some(Value::Object(object))
        }
    }
}

impl Field for ResourceKey {
    fn kind() -> String {
        "list of segments, as `[\"packages\", \"{id}\", \"..\"]`: `{NAME}` binds, `..` at the end is any further"
            .to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        reader.items(node, &Self::kind())?;
        let value = json(node, reader, 0)?;
        match KeyPattern::new(value.as_array().map_or(&[], Vec::as_slice)) {
            Ok(pattern) => Some(Self(pattern)),
            Err(error) => {
                reader.odd(node, format!("failed to {error}"), Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.to_value()
    }
}

impl Field for KeyTemplate {
    fn kind() -> String {
        "list of segments, as `[\"packages\", \"$.id\"]`: paths and `{NAME}` are filled in".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        if reader.items(node, &Self::kind())?.is_empty() {
            reader.invalid(node, "a list of at least one segment");
            return None;
        }
        json(node, reader, 0).map(Self)
    }

    fn canon(&self) -> Value {
        self.0.clone()
    }
}

impl Field for MergeValue {
    fn kind() -> String {
        "JSON value; texts that are paths yield what they lead to".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        json(node, reader, 0).map(Self)
    }

    fn canon(&self) -> Value {
        self.0.clone()
    }
}

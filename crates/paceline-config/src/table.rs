//! How tables are declared: once, for reading, showing, digests and documents alike.
//!
//! A field `must` be given, `may` be given, `has` a default, or is a `table` (or a list or table of such) that is empty
//! where it is not given.

/// Declares a table of the language.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $( $(#[doc = $doc:literal])+
               $mode:ident $field:ident : $ty:ty $(= $default:expr, $why:literal)? $(; needs $part:ident)? , )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( pub(crate) $field: table!(@type $mode $ty), )*
        }

        impl $name {
            $( $(#[doc = $doc])+
               pub const fn $field(&self) -> &table!(@type $mode $ty) {
                   &self.$field
               } )*
        }

        impl $crate::reader::Field for $name {
            fn kind() -> String {
                "table".to_owned()
            }

            fn read(
                node: &$crate::node::Node,
                reader: &mut $crate::reader::Reader<'_>,
            ) -> Option<Self> {
                let members = reader.table(node, &[$( $crate::table::bare(stringify!($field)) ),*])?;
                $( let $field = table!(
                    @read $mode $ty, reader, members, node, $crate::table::bare(stringify!($field)),
                    table!(@part $($part)?) $(, $default, $why)?
                ); )*
                let read = Self { $( $field: $field? ),* };
                $crate::reader::Check::check(&read, &node.origin, reader);
                Some(read)
            }

            fn canon(&self) -> serde_json::Value {
                let mut members = serde_json::Map::new();
                $( table!(
                    @canon $mode self.$field, members, $crate::table::bare(stringify!($field)) $(, $default)?
                ); )*
                serde_json::Value::Object(members)
            }

            fn list(
                &self,
                key: &str,
                _origin: &$crate::origin::Origin,
                out: &mut Vec<$crate::reader::Entry>,
            ) {
                $( table!(@list $mode self.$field, key, $crate::table::bare(stringify!($field)), out); )*
            }

            fn describe(key: &str, out: &mut Vec<$crate::reader::KeyDoc>) {
                $( $crate::table::describe::<$ty>(
                    key,
                    $crate::table::bare(stringify!($field)),
                    concat!($($doc),+),
                    stringify!($mode) == "must",
                    table!(@documented $($default, $why)?),
                    table!(@part $($part)?),
                    out,
                ); )*
            }
        }
    };

    (@type must $ty:ty) => { $crate::reader::Sourced<$ty> };
    (@type has $ty:ty) => { $crate::reader::Sourced<$ty> };
    (@type table $ty:ty) => { $crate::reader::Sourced<$ty> };
    (@type may $ty:ty) => { Option<$crate::reader::Sourced<$ty>> };

    (@part) => { None };
    (@part $part:ident) => { Some($crate::part::Part::$part) };

    (@documented) => { None };
    (@documented $default:expr, $why:literal) => { Some((serde_json::json!($default), $why)) };

    (@read must $ty:ty, $reader:ident, $members:ident, $node:ident, $key:expr, $part:expr) => {{
        let read = $reader.member::<$ty>($members, $key, $part);
        if read.is_none() {
            $reader.missing(&$node.origin, $key, <$ty as $crate::reader::Field>::kind());
        }
        read
    }};
    (@read may $ty:ty, $reader:ident, $members:ident, $node:ident, $key:expr, $part:expr) => {
        Some($reader.member::<$ty>($members, $key, $part))
    };
    (@read has $ty:ty, $reader:ident, $members:ident, $node:ident, $key:expr, $part:expr,
     $default:expr, $why:literal) => {
        match $reader.member::<$ty>($members, $key, $part) {
            Some(read) => Some(read),
            None => $reader.default::<$ty>(&serde_json::json!($default), $why),
        }
    };
    (@read table $ty:ty, $reader:ident, $members:ident, $node:ident, $key:expr, $part:expr) => {
        match $reader.member::<$ty>($members, $key, $part) {
            Some(read) => Some(read),
            None => $reader.default::<$ty>(&<$ty as $crate::table::Empty>::empty(), ""),
        }
    };

    (@canon must $value:expr, $members:ident, $key:expr) => {
        $members.insert($key.to_owned(), $crate::reader::Field::canon($value.value()));
    };
    (@canon may $value:expr, $members:ident, $key:expr) => {
        if let Some(value) = &$value {
            $members.insert($key.to_owned(), $crate::reader::Field::canon(value.value()));
        }
    };
    (@canon has $value:expr, $members:ident, $key:expr, $default:expr) => {
        let value = $crate::reader::Field::canon($value.value());
        if !$crate::table::is_default($value.value(), &value, serde_json::json!($default)) {
            $members.insert($key.to_owned(), value);
        }
    };
    (@canon table $value:expr, $members:ident, $key:expr) => {
        let value = $crate::reader::Field::canon($value.value());
        if !$crate::table::is_empty(&value) {
            $members.insert($key.to_owned(), value);
        }
    };

    (@list may $value:expr, $prefix:ident, $key:expr, $out:ident) => {
        if let Some(value) = &$value {
            let key = $crate::node::join($prefix, $key);
            $crate::reader::Field::list(value.value(), &key, value.origin(), $out);
        }
    };
    (@list $mode:ident $value:expr, $prefix:ident, $key:expr, $out:ident) => {
        let key = $crate::node::join($prefix, $key);
        $crate::reader::Field::list($value.value(), &key, $value.origin(), $out);
    };
}

/// Declares a value that is one of a few words.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// The words, as they are written.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::reader::Field for $name {
            fn kind() -> String {
                [$(concat!("`", $word, "`")),+].join(", ")
            }

            fn read(
                node: &$crate::node::Node,
                reader: &mut $crate::reader::Reader<'_>,
            ) -> Option<Self> {
                let word = reader.text(node, &Self::kind())?;
                match word {
                    $( $word => Some(Self::$variant), )+
                    _ => {
                        reader.unknown_word(node, word, Self::WORDS);
                        None
                    }
                }
            }

            fn canon(&self) -> serde_json::Value {
                self.as_str().into()
            }
        }
    };
}

use serde_json::{Map, Value};

use crate::{
    node::{Node, join, literal},
    origin::Origin,
    part::{Capabilities, Part},
    reader::{Field, KeyDoc, Named, Reader},
};

/// The name of a field without the mark of a raw identifier.
pub(crate) const fn bare(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Types that have an empty form.
pub(crate) trait Empty {
    /// The form, as JSON.
    fn empty() -> Value {
        Value::Object(Map::new())
    }
}

impl<T> Empty for T where T: Field {}

pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Whether a value is the default, however the default is written.
pub(crate) fn is_default<T: Field>(_: &T, canon: &Value, default: Value) -> bool {
    canonical::<T>(&default).as_ref() == Some(canon)
}

fn canonical<T: Field>(value: &Value) -> Option<Value> {
    let node = Node::of_json(value, &Origin::Default { tuned_for: "" });
    let capabilities = Capabilities::all();
    T::read(&node, &mut Reader::new(&node, &capabilities)).map(|value| value.canon())
}

pub(crate) fn describe<T: Field>(
    table: &str,
    key: &str,
    meaning: &str,
    required: bool,
    default: Option<(Value, &'static str)>,
    needs: Option<Part>,
    out: &mut Vec<KeyDoc>,
) {
    let key = join(table, key);
    out.push(KeyDoc {
        key: key.clone(),
        kind: T::kind(),
        default: default.as_ref().map(|(value, _)| literal(value)),
        tuned_for: default.map(|(_, why)| why),
        required,
        meaning: meaning.trim().to_owned(),
        needs,
    });
    T::describe(&key, out);
}

/// Tables of one kind, and elements of a list. A file may come from anybody, and checks compare them with one another.
const ITEMS_MAX: usize = 1024;

/// Whether there are not too many; reports it otherwise.
fn fits(count: usize, node: &Node, reader: &mut Reader<'_>) -> bool {
    if count > ITEMS_MAX {
        reader.odd(node, format!("holds {count} items"), format!("at most {ITEMS_MAX}"));
    }
    count <= ITEMS_MAX
}

impl<T: Field> Field for Named<T> {
    fn kind() -> String {
        format!("tables by name, each a {}", T::kind())
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(members) = node.members() else {
            reader.invalid(node, Self::kind());
            return None;
        };
        if !fits(members.len(), node, reader) {
            return None;
        }
        let mut named = Self::new();
        for (name, member) in members {
            let Some(name) = reader.name(name, &member.at) else { continue };
            // One that cannot be read stays out: the others are still looked at.
            let read = reader.member::<T>(members, name.as_str(), None);
            named.extend(read.map(|value| (name, value)));
        }
        Some(named)
    }

    fn canon(&self) -> Value {
        Value::Object(self.iter().map(|(name, value)| (name.to_string(), value.canon())).collect())
    }

    fn list(&self, key: &str, _origin: &Origin, out: &mut Vec<crate::reader::Entry>) {
        for (name, value) in self {
            value.value().list(&join(key, name.as_str()), value.origin(), out);
        }
    }

    fn describe(key: &str, out: &mut Vec<KeyDoc>) {
        T::describe(&format!("{key}.NAME"), out);
    }
}

impl<T: Field> Field for Vec<crate::reader::Sourced<T>> {
    fn kind() -> String {
        format!("list, each {}", T::kind())
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        // What stands nowhere is an empty list.
        if node.members().is_some_and(|members| members.is_empty() && node.origin.file().is_none()) {
            return Some(Self::new());
        }
        let items = reader.items(node, &Self::kind())?;
        if !fits(items.len(), node, reader) {
            return None;
        }
        let read: Vec<Option<_>> = items
            .iter()
            .enumerate()
            .map(|(n, item)| {
                let value = reader.inside(&format!("[{n}]"), |reader| T::read(item, reader));
                value.map(|value| crate::reader::Sourced::new(value, item.origin.clone()))
            })
            .collect();
        read.into_iter().collect()
    }

    fn canon(&self) -> Value {
        self.iter().map(|item| item.canon()).collect()
    }

    fn list(&self, key: &str, origin: &Origin, out: &mut Vec<crate::reader::Entry>) {
        if self.is_empty() {
            out.push(crate::reader::Entry {
                key: key.to_owned(),
                value: "[]".to_owned(),
                origin: origin.clone(),
            });
        }
        for (n, item) in self.iter().enumerate() {
            item.value().list(&format!("{key}[{n}]"), item.origin(), out);
        }
    }

    fn describe(key: &str, out: &mut Vec<KeyDoc>) {
        T::describe(&format!("{key}[]"), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        reader::Sourced,
        tables::Profile,
        value::{Name, number::tests::read},
    };

    #[test]
    fn lists_and_named_tables_are_bounded() {
        let list = |count: usize| format!("[{}]", vec!["\"a\""; count].join(","));
        assert!(read::<Vec<Sourced<Name>>>(&list(ITEMS_MAX)).is_ok());
        assert!(read::<Vec<Sourced<Name>>>(&list(ITEMS_MAX + 1)).is_err());
        let tables = |count: usize| {
            let all: Vec<String> = (0..count).map(|n| format!("n{n} = {{}}")).collect();
            format!("{{ {} }}", all.join(", "))
        };
        assert!(read::<Named<Profile>>(&tables(ITEMS_MAX)).is_ok());
        assert!(read::<Named<Profile>>(&tables(ITEMS_MAX + 1)).is_err());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Any value as a list of field paths and texts: what plans compare and print, and what digests are taken over.
//!
//! Complete (two values with the same list are equal for the types of the model) and ordered as the fields are. Bytes
//! are written in hex. Nothing is cut short here; whoever prints may.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::ser::{self, Serialize};
use sha2::{Digest as _, Sha256};

/// A path such as `apps.0.resources.vcpus`, and the value there.
pub type Field = (String, String);

/// The fields of a value. `None` and empty lists have none.
pub fn flatten<T: Serialize>(value: &T) -> Vec<Field> {
    let mut out = Vec::new();
    if let Ok(node) = value.serialize(Nodes) {
        node.walk(&mut String::new(), &mut |path, text| out.push((path.into(), text)));
    }
    out
}

/// SHA-256 over the fields of a value, in hex.
pub fn digest<T: Serialize>(value: &T) -> String {
    let mut hash = Sha256::new();
    if let Ok(node) = value.serialize(Nodes) {
        node.walk(&mut String::new(), &mut |path, text| {
            // Lengths keep two different lists from running together into the same bytes.
            hash.update((path.len() as u64).to_be_bytes());
            hash.update(path.as_bytes());
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        });
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[derive(Debug)]
enum Node {
    Nothing,
    Leaf(String),
    Byte(u8),
    List(Vec<Node>),
    Map(Vec<(Cow<'static, str>, Node)>),
}

impl Node {
    fn walk(self, path: &mut String, out: &mut dyn FnMut(&str, String)) {
        match self {
            Node::Nothing => {}
            Node::Leaf(text) => out(path, text),
            Node::Byte(byte) => out(path, byte.to_string()),
            Node::List(items) => {
                if !items.is_empty() && items.iter().all(|item| matches!(item, Node::Byte(_))) {
                    let bytes: Vec<u8> = items
                        .iter()
                        .filter_map(|i| if let Node::Byte(b) = i { Some(*b) } else { None })
                        .collect();
                    out(path, hex(&bytes));
                    return;
                }
                for (index, item) in items.into_iter().enumerate() {
                    item.below(&index.to_string(), path, out);
                }
            }
            Node::Map(entries) => {
                for (key, item) in entries {
                    item.below(&key, path, out);
                }
            }
        }
    }

    fn below(self, key: &str, path: &mut String, out: &mut dyn FnMut(&str, String)) {
        let length = path.len();
        if length > 0 {
            path.push('.');
        }
        path.push_str(key);
        self.walk(path, out);
        path.truncate(length);
    }
}

/// The types of the model serialize into texts, numbers, lists and maps; nothing there can fail.
#[derive(Debug)]
struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("value cannot be flattened")
    }
}

impl ser::StdError for Never {}

impl ser::Error for Never {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Never
    }
}

struct Nodes;

macro_rules! leaves {
    ($($method:ident: $type:ty),*) => {$(
        fn $method(self, value: $type) -> Result<Node, Never> {
            Ok(Node::Leaf(value.to_string()))
        }
    )*};
}

impl ser::Serializer for Nodes {
    type Ok = Node;
    type Error = Never;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = List;
    type SerializeMap = Map;
    type SerializeStruct = Map;
    type SerializeStructVariant = Map;

    leaves! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32, serialize_f64: f64,
        serialize_char: char, serialize_str: &str
    }
    fn serialize_u8(self, value: u8) -> Result<Node, Never> {
        Ok(Node::Byte(value))
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<Node, Never> {
        Ok(Node::Leaf(hex(value)))
    }
    fn serialize_none(self) -> Result<Node, Never> {
        Ok(Node::Nothing)
    }
    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<Node, Never> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Node, Never> {
        Ok(Node::Nothing)
    }
    fn serialize_unit_struct(self, name: &'static str) -> Result<Node, Never> {
        Ok(Node::Leaf(name.into()))
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Node, Never> {
        Ok(Node::Leaf(variant.into()))
    }
    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Node, Never> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Node, Never> {
        Ok(Node::Map(alloc::vec![(variant.into(), value.serialize(Nodes)?)]))
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<List, Never> {
        Ok(List { variant: None, items: Vec::new() })
    }
    fn serialize_tuple(self, _: usize) -> Result<List, Never> {
        self.serialize_seq(None)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List, Never> {
        self.serialize_seq(None)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List, Never> {
        Ok(List { variant: Some(variant), items: Vec::new() })
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Map, Never> {
        Ok(Map { variant: None, key: String::new(), entries: Vec::new() })
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Map, Never> {
        self.serialize_map(None)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Map, Never> {
        Ok(Map { variant: Some(variant), key: String::new(), entries: Vec::new() })
    }
}

struct List {
    variant: Option<&'static str>,
    items: Vec<Node>,
}

impl List {
    fn push<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        self.items.push(value.serialize(Nodes)?);
        Ok(())
    }
    fn done(self) -> Node {
        within(self.variant, Node::List(self.items))
    }
}

fn within(variant: Option<&'static str>, node: Node) -> Node {
    match variant {
        Some(variant) => Node::Map(alloc::vec![(variant.into(), node)]),
        None => node,
    }
}

impl ser::SerializeSeq for List {
    type Ok = Node;
    type Error = Never;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        self.push(value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

impl ser::SerializeTuple for List {
    type Ok = Node;
    type Error = Never;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        self.push(value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

impl ser::SerializeTupleStruct for List {
    type Ok = Node;
    type Error = Never;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        self.push(value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

impl ser::SerializeTupleVariant for List {
    type Ok = Node;
    type Error = Never;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        self.push(value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

struct Map {
    variant: Option<&'static str>,
    key: String,
    entries: Vec<(Cow<'static, str>, Node)>,
}

impl Map {
    fn push<T: ?Sized + Serialize>(&mut self, key: Cow<'static, str>, value: &T) -> Result<(), Never> {
        self.entries.push((key, value.serialize(Nodes)?));
        Ok(())
    }
    fn done(self) -> Node {
        within(self.variant, Node::Map(self.entries))
    }
}

impl ser::SerializeMap for Map {
    type Ok = Node;
    type Error = Never;
    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Never> {
        self.key = match key.serialize(Nodes)? {
            Node::Leaf(text) => text,
            other => {
                let mut out = Vec::new();
                other.walk(&mut String::new(), &mut |_, text| out.push(text));
                out.join("#")
            }
        };
        Ok(())
    }
    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Never> {
        let key = core::mem::take(&mut self.key);
        self.push(key.into(), value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

impl ser::SerializeStruct for Map {
    type Ok = Node;
    type Error = Never;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), Never> {
        self.push(key.into(), value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

impl ser::SerializeStructVariant for Map {
    type Ok = Node;
    type Error = Never;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), Never> {
        self.push(key.into(), value)
    }
    fn end(self) -> Result<Node, Never> {
        Ok(self.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::config::{AclProtocol, PortRange, VolumeOrigin};
    use model::id::ContentTreeId;
    use uuid::Uuid;

    #[test]
    fn values_become_paths_in_field_order() {
        let value = (
            PortRange { first: 1, last: 2 },
            Some(VolumeOrigin::Content(ContentTreeId(Uuid::nil()))),
            None::<u32>,
            AclProtocol::Tcp,
            alloc::vec![0xabu8, 1],
        );
        let fields: Vec<String> = flatten(&value).iter().map(|(p, t)| alloc::format!("{p}={t}")).collect();
        assert_eq!(
            fields,
            ["0.first=1", "0.last=2", "1.Content=00000000-0000-0000-0000-000000000000", "3=Tcp", "4=ab01"]
        );
    }

    #[test]
    fn digests_tell_shifted_fields_apart() {
        assert_ne!(digest(&("ab", "c")), digest(&("a", "bc")));
        assert_eq!(digest(&("ab", "c")), digest(&("ab", "c")));
    }
}

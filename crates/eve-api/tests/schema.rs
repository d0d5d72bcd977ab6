// SPDX-License-Identifier: Apache-2.0
//! The compiled schema equals the tables of the standard: nothing missing, nothing extra.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

const WELL_KNOWN: &str = "google.protobuf";

fn pool() -> DescriptorPool {
    DescriptorPool::decode(eve_api::DESCRIPTORS).unwrap()
}

/// Rows of a table without its head, cells by column.
fn rows(table: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables").join(table);
    let text = fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|line| line.split('\t').map(String::from).collect()).collect()
}

/// Rows that the newer version of the standard adds, without the columns `change` and `kind`.
fn added(kind: &str) -> Vec<Vec<String>> {
    let newer = rows("delta-newer.tsv");
    assert!(newer.iter().all(|row| row[0] == "+"), "the newer version only adds");
    newer.into_iter().filter(|row| row[1] == kind).map(|row| row[2..].to_vec()).collect()
}

fn messages(pool: &DescriptorPool) -> impl Iterator<Item = MessageDescriptor> + '_ {
    pool.all_messages().filter(|m| m.package_name() != WELL_KNOWN && !m.is_map_entry())
}

fn in_package(full_name: &str, package: &str) -> String {
    full_name.strip_prefix(package).unwrap().trim_start_matches('.').to_owned()
}

fn type_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(enumeration) => enumeration.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn field_row(message: &MessageDescriptor, field: &FieldDescriptor) -> Vec<String> {
    let real_oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
    let (label, kind) = if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!() };
        let part = |field: FieldDescriptor| type_name(&field.kind());
        let kind =
            format!("map<{},{}>", part(entry.map_entry_key_field()), part(entry.map_entry_value_field()));
        ("map".into(), kind)
    } else {
        let label = match (field.cardinality(), real_oneof) {
            (Cardinality::Repeated, _) => "repeated".into(),
            (_, Some(oneof)) => format!("oneof:{}", oneof.name()),
            _ if field.field_descriptor_proto().proto3_optional() => "optional".into(),
            _ => "singular".into(),
        };
        (label, type_name(&field.kind()))
    };
    let options = field.field_descriptor_proto().options.as_ref();
    let is_deprecated = options.is_some_and(|options| options.deprecated());
    vec![
        message.parent_file().name().into(),
        message.package_name().into(),
        in_package(message.full_name(), message.package_name()),
        field.name().into(),
        field.number().to_string(),
        label,
        kind,
        u8::from(is_deprecated).to_string(),
    ]
}

/// Compares as sets, so that a failure names the rows.
fn assert_same(mut ours: Vec<Vec<String>>, mut table: Vec<Vec<String>>, what: &str) {
    ours.sort();
    table.sort();
    let left: BTreeSet<_> = ours.iter().collect();
    let right: BTreeSet<_> = table.iter().collect();
    let extra: Vec<_> = left.difference(&right).collect();
    let missing: Vec<_> = right.difference(&left).collect();
    assert!(extra.is_empty() && missing.is_empty(), "{what}: extra {extra:#?}, missing {missing:#?}");
    assert_eq!(ours.len(), table.len(), "{what}: a row stands twice");
}

#[test]
fn every_field_is_as_in_the_table() {
    let pool = pool();
    let ours: Vec<_> =
        messages(&pool).flat_map(|m| m.fields().map(|f| field_row(&m, &f)).collect::<Vec<_>>()).collect();
    let mut table = rows("fields.tsv");
    assert_eq!(table.len(), 1731);
    table.extend(added("field"));
    assert_same(ours, table, "fields");
}

#[test]
fn every_message_is_as_in_the_table() {
    let pool = pool();
    let newer = added("field");
    let ours = messages(&pool).map(|m| {
        let name = in_package(m.full_name(), m.package_name());
        let news = newer.iter().filter(|row| row[1] == m.package_name() && row[2] == name).count();
        let reserved: Vec<_> = m
            .descriptor_proto()
            .reserved_range
            .iter()
            .map(|range| match (range.start(), range.end() - 1) {
                (start, end) if start == end => start.to_string(),
                (start, end) => format!("{start}-{end}"),
            })
            .collect();
        vec![
            m.parent_file().name().into(),
            m.package_name().into(),
            name,
            (m.fields().len() - news).to_string(),
            reserved.join(","),
        ]
    });
    let table = rows("messages.tsv");
    assert_eq!(table.len(), 313);
    assert_same(ours.collect(), table, "messages");
}

#[test]
fn every_enum_value_is_as_in_the_table() {
    let pool = pool();
    let value_rows = |e: EnumDescriptor| {
        let row = |v: prost_reflect::EnumValueDescriptor| {
            vec![
                e.parent_file().name().into(),
                e.package_name().into(),
                in_package(e.full_name(), e.package_name()),
                v.name().into(),
                v.number().to_string(),
            ]
        };
        e.values().map(row).collect::<Vec<_>>()
    };
    let ours = pool.all_enums().filter(|e| e.package_name() != WELL_KNOWN).flat_map(value_rows).collect();
    let mut table = rows("enums.tsv");
    assert_eq!(table.len(), 646);
    table.extend(added("enum").into_iter().map(|row| row[..5].to_vec()));
    assert_same(ours, table, "enums");
}

#[test]
fn json_names_follow_from_field_names() {
    for message in messages(&pool()) {
        for field in message.fields() {
            assert_eq!(field.json_name(), camel(field.name()), "{}", field.full_name());
        }
    }
}

/// protoc's rule: an underscore goes and raises the letter behind it, all else stays.
fn camel(name: &str) -> String {
    let mut out = String::new();
    let mut raise = false;
    for c in name.chars() {
        if c == '_' {
            raise = true;
        } else {
            out.push(if raise { c.to_ascii_uppercase() } else { c });
            raise = false;
        }
    }
    out
}

#[test]
fn a_stored_message_prints_as_json() {
    use eve_api::Message as _;
    let stored =
        eve_api::wire::config::ConfigRequest { config_hash: "abc".into(), integrity_token: vec![1, 2] };
    let kind = pool().get_message_by_name("org.lfedge.eve.config.ConfigRequest").unwrap();
    let message = prost_reflect::DynamicMessage::decode(kind, stored.encode_to_vec().as_slice()).unwrap();
    expect_test::expect![[r#"{"configHash":"abc","integrityToken":"AQI="}"#]]
        .assert_eq(&serde_json::to_string(&message).unwrap());
}

//! The contract's numbers, names and types are held to a checked-in list, so that none changes
//! unnoticed: an old client would misread the answer of a new server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{collections::HashSet, env, fmt::Write as _, fs};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use stillhouse_proto::v1;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/descriptor.golden.txt");

#[test]
fn the_contract_is_the_checked_in_one() {
    let actual = dump();
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(GOLDEN, &actual).unwrap();
    }
    let golden = fs::read_to_string(GOLDEN).unwrap();
    assert!(
        golden == actual,
        "the contract differs from tests/descriptor.golden.txt (- listed, + now):\n{}\
         \nA published number, name or type must not change. If this change is meant, run\n\
         UPDATE_GOLDEN=1 cargo test -p stillhouse-proto --test descriptor",
        difference(&golden, &actual)
    );
}

/// The descriptor carries the comments, and reflection hands them out: whoever reads the contract
/// that way finds a word on every part of it.
#[test]
fn every_part_has_a_comment() {
    let set = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let mut parts = 0;
    for file in &set.file {
        let locations = &file.source_code_info.as_ref().expect("has no comments at all").location;
        let commented: HashSet<&[i32]> = locations
            .iter()
            .filter(|location| !location.leading_comments().trim().is_empty())
            .map(|location| &location.path[..])
            .collect();
        for (path, name) in parts_of(file) {
            parts += 1;
            assert!(commented.contains(&path[..]), "{name} has no comment before it");
        }
    }
    assert!(parts > 150, "only {parts} parts were looked at");
}

/// Path in the descriptor, and name, of every service, method, message, oneof, field, enum and enum
/// value. The numbers are those of the fields in `descriptor.proto`.
fn parts_of(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    fn index(path: &[i32], field: i32, index: usize) -> Vec<i32> {
        [path, &[field, index as i32]].concat()
    }
    fn enumeration(of: &EnumDescriptorProto, path: &[i32], parts: &mut Vec<(Vec<i32>, String)>) {
        parts.push((path.to_vec(), of.name().to_owned()));
        for (i, value) in of.value.iter().enumerate() {
            parts.push((index(path, 2, i), format!("{}.{}", of.name(), value.name())));
        }
    }
    fn message(of: &DescriptorProto, path: &[i32], parts: &mut Vec<(Vec<i32>, String)>) {
        parts.push((path.to_vec(), of.name().to_owned()));
        for (i, field) in of.field.iter().enumerate() {
            parts.push((index(path, 2, i), format!("{}.{}", of.name(), field.name())));
        }
        for (i, oneof) in of.oneof_decl.iter().enumerate() {
            parts.push((index(path, 8, i), format!("{}.{}", of.name(), oneof.name())));
        }
        for (i, nested) in of.nested_type.iter().enumerate() {
            message(nested, &index(path, 3, i), parts);
        }
        for (i, nested) in of.enum_type.iter().enumerate() {
            enumeration(nested, &index(path, 4, i), parts);
        }
    }
    let mut parts = Vec::new();
    for (i, of) in file.message_type.iter().enumerate() {
        message(of, &index(&[], 4, i), &mut parts);
    }
    for (i, of) in file.enum_type.iter().enumerate() {
        enumeration(of, &index(&[], 5, i), &mut parts);
    }
    for (i, service) in file.service.iter().enumerate() {
        let path = index(&[], 6, i);
        parts.push((path.clone(), service.name().to_owned()));
        for (i, method) in service.method.iter().enumerate() {
            parts.push((index(&path, 2, i), format!("{}.{}", service.name(), method.name())));
        }
    }
    parts
}

/// A number or name that was taken out stays taken: the list shows what is reserved.
#[test]
fn the_list_holds_what_is_reserved() {
    use prost_types::{descriptor_proto::ReservedRange, enum_descriptor_proto::EnumReservedRange};
    let message = DescriptorProto {
        name: Some("A".to_owned()),
        reserved_range: vec![ReservedRange { start: Some(2), end: Some(5) }],
        reserved_name: vec!["old".to_owned()],
        ..Default::default()
    };
    let enumeration = EnumDescriptorProto {
        name: Some("B".to_owned()),
        reserved_range: vec![EnumReservedRange { start: Some(3), end: Some(3) }],
        reserved_name: vec!["B_OLD".to_owned()],
        ..Default::default()
    };
    let mut lines = Vec::new();
    add_message(&message, "", &mut lines);
    add_enum(&enumeration, "", &mut lines);
    let expected = [
        "A is empty",
        "A reserves 2 to 4",
        "A reserves old",
        "B reserves 3 to 3",
        "B reserves B_OLD",
    ];
    assert_eq!(lines, expected);
}

/// The difference itself is what a person acts on.
#[test]
fn the_difference_names_the_lines() {
    let changed = difference("A.a = 1 bytes\nA.b = 2 bytes\n", "A.a = 1 bytes\nA.b = 3 bytes\n");
    assert_eq!(changed, "- A.b = 2 bytes\n+ A.b = 3 bytes\n");
    assert_eq!(difference("a\nb\n", "b\na\n"), "only the order of the lines\n");
}

/// Lines in one text and not in the other.
fn difference(golden: &str, actual: &str) -> String {
    let (old, new): (HashSet<_>, HashSet<_>) = (golden.lines().collect(), actual.lines().collect());
    let mut text = String::new();
    for line in golden.lines().filter(|line| !new.contains(line)) {
        writeln!(text, "- {line}").unwrap();
    }
    for line in actual.lines().filter(|line| !old.contains(line)) {
        writeln!(text, "+ {line}").unwrap();
    }
    if text.is_empty() {
        text.push_str("only the order of the lines\n");
    }
    text
}

/// One line for each method, field and enum value of the package.
fn dump() -> String {
    let set = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
    let mut lines = Vec::new();
    for file in &set.file {
        lines.push(format!("package {} ({})", file.package(), file.syntax()));
        file.service.iter().for_each(|service| add_service(service, &mut lines));
        file.message_type.iter().for_each(|message| add_message(message, "", &mut lines));
        file.enum_type.iter().for_each(|enumeration| add_enum(enumeration, "", &mut lines));
    }
    lines.join("\n") + "\n"
}

fn add_service(service: &ServiceDescriptorProto, lines: &mut Vec<String>) {
    for method in &service.method {
        let stream = |streaming| if streaming { "stream " } else { "" };
        lines.push(format!(
            "{}.{}({}{}) returns ({}{})",
            service.name(),
            method.name(),
            stream(method.client_streaming()),
            local(method.input_type()),
            stream(method.server_streaming()),
            local(method.output_type()),
        ));
    }
}

fn add_message(message: &DescriptorProto, outer: &str, lines: &mut Vec<String>) {
    let name = format!("{outer}{}", message.name());
    if message.field.is_empty() {
        lines.push(format!("{name} is empty"));
    }
    for field in &message.field {
        let kind = field_type(field);
        let oneof = match field.oneof_index {
            Some(index) => format!(" in oneof {}", message.oneof_decl[index as usize].name()),
            None => String::new(),
        };
        lines.push(format!("{name}.{} = {} {kind}{oneof}", field.name(), field.number()));
    }
    for range in &message.reserved_range {
        lines.push(format!("{name} reserves {} to {}", range.start(), range.end() - 1));
    }
    lines
        .extend(message.reserved_name.iter().map(|reserved| format!("{name} reserves {reserved}")));
    let nested = format!("{name}.");
    message.nested_type.iter().for_each(|message| add_message(message, &nested, lines));
    message.enum_type.iter().for_each(|enumeration| add_enum(enumeration, &nested, lines));
}

fn add_enum(enumeration: &EnumDescriptorProto, outer: &str, lines: &mut Vec<String>) {
    let name = format!("{outer}{}", enumeration.name());
    for value in &enumeration.value {
        lines.push(format!("{name}.{} = {}", value.name(), value.number()));
    }
    // The end of an enum's range is in it, unlike a message's.
    for range in &enumeration.reserved_range {
        lines.push(format!("{name} reserves {} to {}", range.start(), range.end()));
    }
    let names = enumeration.reserved_name.iter();
    lines.extend(names.map(|reserved| format!("{name} reserves {reserved}")));
}

fn field_type(field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => local(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    format!("{label}{name}")
}

/// A type's name without this package's prefix.
fn local(name: &str) -> &str {
    name.strip_prefix(".distill.v1.").unwrap_or(name)
}

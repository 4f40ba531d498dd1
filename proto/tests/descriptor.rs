//! The contract's numbers, names and types are held to a checked-in list, so that none changes
//! unnoticed: an old client would misread the answer of a new server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{collections::HashSet, env, fmt::Write as _, fs};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
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
    let nested = format!("{name}.");
    message.nested_type.iter().for_each(|message| add_message(message, &nested, lines));
    message.enum_type.iter().for_each(|enumeration| add_enum(enumeration, &nested, lines));
}

fn add_enum(enumeration: &EnumDescriptorProto, outer: &str, lines: &mut Vec<String>) {
    for value in &enumeration.value {
        let name = enumeration.name();
        lines.push(format!("{outer}{name}.{} = {}", value.name(), value.number()));
    }
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

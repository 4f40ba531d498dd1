//! What stops a teacher from starting is named, with the exit code that says whether to try again.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, net::TcpListener, path::Path, process::Command};

use stillhouse_tests::{models, pki::Authority, process};

fn fails(model: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(process::binary("teacher-server"))
        .arg("--model")
        .arg(model)
        .args(["--listen", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_port_in_use_is_named_and_temporary() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    let output = Command::new(process::binary("teacher-server"))
        .arg("--model")
        .arg(folder.path())
        .args(["--listen", &taken.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{text}");
    assert!(text.contains(&taken.to_string()) && text.contains("in use"), "{text}");

    let (code, text) = fails(folder.path(), &["--metrics-listen", &taken.to_string()]);
    assert_eq!(code, 75, "{text}");
    assert!(text.contains("metrics_listen"), "{text}");
    drop(held);
}

/// Nobody would be asked who they are.
#[test]
fn certificates_are_not_optional_without_a_list_of_clients() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let authority = Authority::new("ours");
    authority.server("teacher.test").write(folder.path(), "server");
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("ca.crt"), &authority.pem).unwrap();
    let (cert, key, ca) = (at("server.crt"), at("server.key"), at("ca.crt"));
    let files = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca];
    let (code, text) =
        fails(folder.path(), &[&files[..], &["--set", "tls.client_cert=optional"]].concat());
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("tls.client_cert: is \"optional\"; must be \"required\""), "{text}");
}

#[test]
fn a_wrong_setting_is_named() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    for (argument, expected) in [
        ("limits.max_row=3", "did you mean `limits.max_rows`?"),
        ("limits.max_rows=0", "limits.max_rows: is 0; must be 1 to"),
        ("log.level=teacher=loud", "log.level"),
    ] {
        let (code, text) = fails(folder.path(), &["--set", argument]);
        assert_eq!(code, 64, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let (code, text) = fails(folder.path(), &["--device", "tpu"]);
    assert!(code == 64 && text.contains("device") && text.contains("tpu"), "{code} {text}");
    let (code, text) = fails(folder.path(), &["--config", "/nonexistent/teacher.toml"]);
    assert!(code == 64 && text.contains("/nonexistent/teacher.toml"), "{code} {text}");
}

#[test]
fn a_model_that_cannot_be_served_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (code, text) = fails(path, &[]);
    assert!(code == 64 && text.contains("config.json"), "{code} {text}");

    models::write_mlp(path, 4, &[8], 5, 1);
    let weights = path.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 5]).unwrap();
    let (code, text) = fails(path, &[]);
    assert!(code == 64 && text.contains("model.safetensors"), "{code} {text}");

    // The last four bytes of the file are a weight.
    let mut poisoned = whole.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &poisoned).unwrap();
    let (code, text) = fails(path, &[]);
    assert!(code == 64 && text.contains("layers."), "{code} {text}");

    fs::write(&weights, &whole).unwrap();
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    fs::write(path.join("config.json"), config.replace("\"mlp\"", "\"perceptron9\"")).unwrap();
    let (code, text) = fails(path, &[]);
    assert!(code == 64 && text.contains("perceptron9") && text.contains("mlp"), "{code} {text}");
}

/// Its memory does not rise by what the kernel makes of it, minutes later.
#[test]
fn a_teacher_has_no_huge_pages() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let teacher = process::Teacher::start(folder.path(), &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", teacher.pid())).unwrap();
    // Kernels before 5.0 do not tell.
    let huge = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
    assert!(huge.is_none_or(|huge| huge.trim() == "0"), "{status}");
}

#!/usr/bin/env bash
# Builds the container images stillhouse/teacher-server and stillhouse/student-worker, tagged with
# the workspace's version. Needs docker, podman or buildah; BUILDER chooses among them.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
target=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-target}
builder=${BUILDER:-$(command -v docker || command -v podman || command -v buildah || true)}
if [ -z "$builder" ]; then
    echo "none of docker, podman and buildah is installed" >&2
    exit 64
fi

# Naming the target keeps the flag away from build scripts, which need a dynamic libc.
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --target "$target" -p teacher-server -p student-worker \
        --features teacher-server/otlp,student-worker/otlp

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
for image in teacher-server student-worker; do
    strip -o "$context/$image" "$folder/$target/release/$image"
    "$builder" build --target "$image" --tag "stillhouse/$image:$version" \
        --file deploy/Containerfile "$context"
done

#!/usr/bin/env bash
# Runs the fuzz targets: `tests/fuzz/run.sh [SECONDS] [TARGET...]`, 600 seconds of each by default, as many
# at a time as there are cores. Stable Rust and a C++ compiler are enough: coverage is LLVM's own pass, and
# the fuzzer is libFuzzer. What it finds worth keeping goes to target/corpus/TARGET; a crash leaves its
# input in target/artifacts/TARGET and ends with 1. `tests/fuzz/run.sh merge` puts a small set of inputs that
# reach every edge that has been reached, each of at most 512 bytes, into corpus/TARGET.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(wire safetensors idx label_archive cache_entry)

host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
# A target of its own, so that build scripts go without coverage.
cargo build --release --quiet --target "$host"
bin=target/$host/release

if [ "$seconds" = merge ]; then
    for target in "${targets[@]}"; do
        mkdir -p "corpus/$target" "target/corpus/$target"
        rm -rf target/merged && mkdir -p target/merged
        "$bin/$target" -merge=1 -use_counters=0 -max_len=512 target/merged "corpus/$target" "target/corpus/$target" 2>/dev/null
        rm -rf "corpus/$target" && mv target/merged "corpus/$target"
        printf '%-14s %s files\n' "$target" "$(find "corpus/$target" -type f | wc -l)"
    done
    exit
fi

fuzz() {
    mkdir -p "target/corpus/$1" "target/artifacts/$1" "corpus/$1"
    # Memory that grows beyond what a parser may take, or an input that takes seconds, is a crash, too.
    if "$bin/$1" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=16384 \
        -print_final_stats=1 -artifact_prefix="target/artifacts/$1/" \
        "target/corpus/$1" "corpus/$1" >"target/$1.log" 2>&1; then
        runs=$(sed -n 's/stat::number_of_executed_units: *//p' "target/$1.log")
        covered=$(grep -o 'cov: [0-9]*' "target/$1.log" | tail -1)
        printf '%-14s no crash in %s runs, %s\n' "$1" "$runs" "$covered"
    else
        printf '%-14s CRASHED: see tests/fuzz/target/%s.log\n' "$1" "$1"
        return 1
    fi
}
export -f fuzz
export bin seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'

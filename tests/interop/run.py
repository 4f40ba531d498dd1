"""Runs client.py against teacher-servers, as somebody without Rust would use the contract.

Needs Python 3 with venv, and cargo. Makes a virtual environment with grpcio-tools, generates a client from
the .proto files alone, starts a server of one model and one of two on free ports, and stops them.
"""

import json
import os
import pathlib
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WORK = TARGET / "interop"
REQUIREMENTS = ["grpcio==1.85.1", "grpcio-tools==1.85.1"]


def environment():
    """Python of a virtual environment with the requirements."""
    python = WORK / "venv" / "bin" / "python"
    stamp = WORK / "venv" / "installed"
    if not stamp.exists() or stamp.read_text() != repr(REQUIREMENTS):
        venv.create(WORK / "venv", with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text(repr(REQUIREMENTS))
    return python


def generate(python):
    """A client module from the .proto files."""
    out = WORK / "generated"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            python, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
            f"--python_out={out}", f"--grpc_python_out={out}", "distill/v1/teacher.proto",
        ],
        check=True,
    )
    return out


def start(*models):
    """A teacher-server of these models on a free port, and its address."""
    subprocess.run(["cargo", "build", "--quiet", "--locked", "-p", "teacher-server"], cwd=ROOT, check=True)
    server = subprocess.Popen(
        [
            TARGET / "debug" / "teacher-server", *(f"--model={model}" for model in models),
            "--listen", "127.0.0.1:0", "--log-format", "json",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in server.stderr:
        # A server that cannot start says so in plain words.
        if not line.startswith("{"):
            sys.exit(f"teacher-server: {line.strip()}")
        event = json.loads(line)
        if event.get("message") == "serving":
            return server, event["address"]
    sys.exit(f"teacher-server ended with {server.wait()}")


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    python = environment()
    generated = generate(python)
    fixtures = HERE / "fixtures"
    server, address = start(fixtures)
    ensemble = None
    try:
        ensemble, other = start(fixtures, fixtures / "second")
        subprocess.run([python, HERE / "client.py", address, other, generated], check=True)
    finally:
        running = [server] + ([ensemble] if ensemble else [])
        for process in running:
            process.terminate()
        statuses = [process.wait(timeout=60) for process in running]
    if any(statuses):
        sys.exit(f"teacher-server exited with {statuses} after SIGTERM")


if __name__ == "__main__":
    main()

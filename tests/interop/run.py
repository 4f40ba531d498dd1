"""Runs client.py against a teacher-server, as somebody without Rust would use the contract.

Needs Python 3 with venv, and cargo. Makes a virtual environment with grpcio-tools, generates a client from
the .proto files alone, starts the server on a free port and stops it.
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


def start():
    """A teacher-server on a free port, and its address."""
    subprocess.run(["cargo", "build", "--quiet", "--locked", "-p", "teacher-server"], cwd=ROOT, check=True)
    server = subprocess.Popen(
        [
            TARGET / "debug" / "teacher-server", "--model", HERE / "fixtures",
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
    server, address = start()
    try:
        subprocess.run([python, HERE / "client.py", address, generated], check=True)
    finally:
        server.terminate()
        status = server.wait(timeout=60)
    if status != 0:
        sys.exit(f"teacher-server exited with {status} after SIGTERM")


if __name__ == "__main__":
    main()

"""Makes fixtures/: a small MLP, what PyTorch says about it, and about an ensemble with a second one.

Needs torch and safetensors; run once, its output is checked in:

    python tests/interop/make_fixtures.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "fixtures"
SIZES = [12, 16, 8, 7]
SECOND_SIZES = [12, 10, 7]
ROWS = 5
TEMPERATURES = [0.5, 1.0, 2.5, 4.0, 20.0]


def mlp(sizes):
    layers = torch.nn.ModuleList(
        torch.nn.Linear(inputs, outputs) for inputs, outputs in zip(sizes, sizes[1:])
    )
    with torch.no_grad():
        for layer in layers:
            layer.weight *= 3.0  # logits far enough apart for temperature to matter
    return layers


def forward(layers, features):
    """The last hidden state, and the logits."""
    hidden = features
    for layer in layers[:-1]:
        hidden = torch.relu(layer(hidden))
    return hidden, layers[-1](hidden)


def save(layers, sizes, folder):
    folder.mkdir(exist_ok=True)
    tensors = {f"layers.{name}": value.detach().clone() for name, value in layers.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "mlp",
        "input_size": sizes[0],
        "hidden_sizes": sizes[1:-1],
        "num_labels": sizes[-1],
        "hidden_act": "relu",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    torch.manual_seed(20)
    layers = mlp(SIZES)
    with torch.no_grad():
        features = torch.randn(ROWS, SIZES[0])
        hidden, logits = forward(layers, features)
        softmax = {str(t): torch.softmax(logits / t, dim=-1).tolist() for t in TEMPERATURES}
        log_softmax = {str(t): torch.log_softmax(logits / t, dim=-1).tolist() for t in TEMPERATURES}

        second = mlp(SECOND_SIZES)
        members = torch.stack([logits, forward(second, features)[1]]).double()
        arithmetic = {str(t): torch.softmax(members / t, dim=-1).mean(0).tolist() for t in TEMPERATURES}
        geometric = {str(t): torch.softmax(members.mean(0) / t, dim=-1).tolist() for t in TEMPERATURES}

    save(layers, SIZES, FOLDER)
    save(second, SECOND_SIZES, FOLDER / "second")
    expected = {
        "torch": torch.__version__,
        "features": features.tolist(),
        "hidden": hidden.tolist(),
        "logits": logits.tolist(),
        "softmax": softmax,
        "log_softmax": log_softmax,
        "ensemble": {"arithmetic": arithmetic, "geometric": geometric},
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Makes fixtures/: a small MLP and what PyTorch says about it.

Needs torch and safetensors; run once, its output is checked in:

    python tests/interop/make_fixtures.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "fixtures"
SIZES = [12, 16, 8, 7]
ROWS = 5
TEMPERATURES = [0.5, 1.0, 2.5, 4.0, 20.0]


def main():
    torch.manual_seed(20)
    layers = torch.nn.ModuleList(
        torch.nn.Linear(inputs, outputs) for inputs, outputs in zip(SIZES, SIZES[1:])
    )
    with torch.no_grad():
        for layer in layers:
            layer.weight *= 3.0  # logits far enough apart for temperature to matter
        features = torch.randn(ROWS, SIZES[0])
        hidden = features
        for layer in layers[:-1]:
            hidden = torch.relu(layer(hidden))
        logits = layers[-1](hidden)
        softmax = {str(t): torch.softmax(logits / t, dim=-1).tolist() for t in TEMPERATURES}
        log_softmax = {str(t): torch.log_softmax(logits / t, dim=-1).tolist() for t in TEMPERATURES}

    FOLDER.mkdir(exist_ok=True)
    tensors = {f"layers.{name}": value.detach().clone() for name, value in layers.state_dict().items()}
    save_file(tensors, FOLDER / "model.safetensors")
    config = {
        "model_type": "mlp",
        "input_size": SIZES[0],
        "hidden_sizes": SIZES[1:-1],
        "num_labels": SIZES[-1],
        "hidden_act": "relu",
    }
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    expected = {
        "torch": torch.__version__,
        "features": features.tolist(),
        "hidden": hidden.tolist(),
        "logits": logits.tolist(),
        "softmax": softmax,
        "log_softmax": log_softmax,
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

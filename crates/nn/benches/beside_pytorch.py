"""PyTorch's side of the beside_pytorch benchmark: prints its version, then reads "CASE STEPS" lines and
answers each with the milliseconds of every step as a JSON list. A training step is that of
beside_pytorch.rs: forward, combined loss at T = 4 and alpha = 0.9, backward, update; input and labels are
fresh in memory each time. Cases that end in "channels_last" keep images in that memory format.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

ROWS, T, ALPHA = 128, 4.0, 0.9
torch.set_num_threads(2)
torch.manual_seed(0)


def mlp(width):
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.fill = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.fill, self.fill))
        return F.relu(y + x)


def resnet(depth):
    layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for outputs in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers.append(Block(inputs, outputs, outputs // inputs))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(model, optimizer, shape):
    optimizer = optimizer(model.parameters())
    x = torch.rand(ROWS, *shape)
    hard, soft = torch.randint(10, (ROWS,)), torch.randn(ROWS, 10)

    def step(layout):
        logits = model(x.clone(memory_format=layout))
        distilled = F.kl_div(F.log_softmax(logits / T, -1), F.log_softmax(soft / T, -1),
                             reduction="batchmean", log_target=True)
        loss = (1 - ALPHA) * F.cross_entropy(logits, hard) + ALPHA * T * T * distilled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, step


def infer(model, shape):
    model.eval()
    x = torch.rand(ROWS, *shape)

    @torch.inference_mode()
    def step(layout):
        return model(x.clone(memory_format=layout))

    return model, step


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


GREY, COLOUR = (1, 28, 28), (3, 32, 32)
CASES = {
    "mlp-1200-sgd": lambda: train(mlp(1200), sgd, (784,)),
    "mlp-1200-adamw": lambda: train(mlp(1200), adamw, (784,)),
    "mlp-800-adamw": lambda: train(mlp(800), adamw, (784,)),
    "lenet-adamw": lambda: train(lenet(), adamw, GREY),
    "resnet20-sgd": lambda: train(resnet(20), sgd, COLOUR),
    "resnet56-inference": lambda: infer(resnet(56), COLOUR),
}


def make(name):
    case = name.removesuffix("-channels_last")
    model, step = CASES[case]()
    if name == case:
        return lambda: step(torch.preserve_format)
    model.to(memory_format=torch.channels_last)
    return lambda: step(torch.channels_last)


made = {}
print(json.dumps(torch.__version__), flush=True)
for line in sys.stdin:
    name, steps = line.split()
    if name not in made:
        made[name] = make(name)
    step = made[name]
    times = []
    for _ in range(int(steps)):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps(times), flush=True)

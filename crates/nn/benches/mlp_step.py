"""PyTorch's side of the mlp_step benchmark: reads "OPTIMIZER STEPS" lines, answers each with the
milliseconds of every step as a JSON list. The step is that of mlp_step.rs: forward, combined loss
at T = 4 and alpha = 0.9, backward, update; input and labels are fresh in memory each time.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

ROWS, T, ALPHA = 128, 4.0, 0.9
torch.set_num_threads(2)
torch.manual_seed(0)


def make(optimizer):
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 1200), torch.nn.ReLU(),
        torch.nn.Linear(1200, 1200), torch.nn.ReLU(),
        torch.nn.Linear(1200, 10))
    if optimizer == "sgd":
        return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def step(model, optimizer, x, hard, soft):
    logits = model(x)
    distilled = F.kl_div(F.log_softmax(logits / T, -1), F.log_softmax(soft / T, -1),
                         reduction="batchmean", log_target=True)
    loss = (1 - ALPHA) * F.cross_entropy(logits, hard) + ALPHA * T * T * distilled
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


runs = {name: make(name) for name in ("sgd", "adamw")}
x, hard, soft = torch.rand(ROWS, 784), torch.randint(10, (ROWS,)), torch.randn(ROWS, 10)
print(json.dumps(torch.__version__), flush=True)
for line in sys.stdin:
    name, steps = line.split()
    times = []
    for _ in range(int(steps)):
        start = time.perf_counter()
        step(*runs[name], x.clone(), hard, soft)
        times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps(times), flush=True)

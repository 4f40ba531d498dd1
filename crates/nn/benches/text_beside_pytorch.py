"""PyTorch's side of a case of the text_beside_pytorch benchmark: reads numbers of steps and answers each with
the milliseconds of every step and the peak memory of the process in MiB, as JSON.

    python text_beside_pytorch.py CASE        (torch, transformers; CASE-bf16: under autocast)
"""

import json
import resource
import sys
import time

import torch
from torch.nn import functional as F

torch.set_num_threads(2)
torch.manual_seed(0)
TOKENS, WORDS, WIDTH, T, ALPHA = 8192, 32_000, 512, 2.0, 0.9
SEQUENCES, LENGTH, VOCAB = 8, 256, 8192


def divergence(logits, teacher):
    return T * T * F.kl_div(
        F.log_softmax(logits / T, -1), F.log_softmax(teacher / T, -1), reduction="batchmean", log_target=True
    )


def output_loss():
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = (0.05 * torch.randn(WORDS, WIDTH)).requires_grad_()
    states, head = torch.randn(TOKENS, WIDTH), 0.05 * torch.randn(WORDS, WIDTH)

    def step():
        hidden.grad = weight.grad = None
        with torch.no_grad():
            teacher = states @ head.T
        with autocast:
            logits = hidden @ weight.T
        divergence(logits.float(), teacher).backward()

    return step


def llama():
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def train(distil):
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids, hard = torch.randint(VOCAB, (2, SEQUENCES, LENGTH))
    teacher = torch.randn(SEQUENCES * LENGTH, VOCAB)

    def step():
        with autocast:
            logits = model(input_ids=ids).logits.flatten(0, 1)
        logits = logits.float()
        loss = F.cross_entropy(logits, hard.flatten())
        if distil:
            loss = (1 - ALPHA) * loss + ALPHA * divergence(logits, teacher)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def infer():
    model = llama().eval()
    ids = torch.randint(VOCAB, (SEQUENCES, LENGTH))

    @torch.inference_mode()
    def step():
        model(input_ids=ids)

    return step


case, bf16 = sys.argv[1].removesuffix("-bf16"), sys.argv[1].endswith("-bf16")
autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
step = {
    "output-loss": output_loss,
    "llama-train": lambda: train(False),
    "llama-distil": lambda: train(True),
    "llama-infer": infer,
}[case]()
for line in sys.stdin:
    times = []
    for _ in range(int(line)):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps([times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)

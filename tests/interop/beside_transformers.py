"""Compares a served model with the same folder in Hugging Face transformers, over gRPC and from
`from_pretrained`: a language model's logits of every position of a few sequences, or a classifier's of each.

    cargo build -p teacher-server
    python beside_transformers.py MODEL_DIR        (torch, transformers, grpcio-tools)

Any folder that a run of the student worker leaves will do: it is loaded as it is. Not part of CI, for the
size of torch.
"""

import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run  # noqa: E402

TOLERANCE = 1e-4
LENGTHS = [1, 7, 40]


def main():
    import grpc
    import torch
    import transformers

    folder = pathlib.Path(sys.argv[1]).resolve()
    run.WORK.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(run.generate(sys.executable)))
    from distill.v1 import teacher_pb2 as pb
    from distill.v1 import teacher_pb2_grpc as service

    classifies = transformers.AutoConfig.from_pretrained(folder).model_type in ("bert", "roberta", "distilbert")
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    # Strict: a tensor that is missing, or that nobody asked for, is an error.
    model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    faults = {key: value for key, value in report.items() if value}
    assert not faults, faults
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    print(type(model).__name__, sum(p.numel() for p in model.parameters()), "weights,", len(tokenizer), "words")

    server, address = run.start(folder)
    try:
        channel = grpc.insecure_channel(address)
        teacher = service.TeacherServiceStub(channel)
        described = teacher.Describe(pb.DescribeRequest())
        classes = described.classes
        generator = torch.Generator().manual_seed(1)
        rows = [torch.randint(len(tokenizer), (n,), generator=generator) for n in LENGTHS]
        ids = torch.cat(rows).tolist()
        packed = struct.pack(f"<{len(ids)}I", *ids)
        request = pb.LabelRequest(
            sequences=pb.Sequences(lengths=LENGTHS, token_ids=packed),
            temperatures=[1.0],
            encoding=pb.Encoding(dense=pb.DenseEncoding(kind=pb.DENSE_KIND_LOGITS, dtype=pb.D_TYPE_F32)),
        )
        values = teacher.Label(request).labels[0].dense.values
        found = torch.frombuffer(bytearray(values.data), dtype=torch.float32).view(*values.shape)
        with torch.no_grad():
            logits = [model(input_ids=row[None]).logits for row in rows]
            expected = torch.cat([own.view(-1, own.shape[-1]) for own in logits])[:, :classes]
    finally:
        server.terminate()
        server.wait(timeout=60)
    off = (found - expected).abs().max().item()
    print(f"{found.shape[0]} labels x {classes} classes, largest difference of a logit: {off:.2e}")
    if off > TOLERANCE:
        sys.exit(f"it is above {TOLERANCE}")


if __name__ == "__main__":
    main()

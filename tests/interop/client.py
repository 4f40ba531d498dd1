"""A client made from the .proto files alone, checked against PyTorch's numbers.

    python client.py HOST:PORT OF_THE_ENSEMBLE:PORT FOLDER_OF_GENERATED_CODE

The expected numbers and the weights behind them are in fixtures/ (make_fixtures.py).
"""

import json
import math
import pathlib
import struct
import sys

import grpc

ADDRESS, ENSEMBLE, GENERATED = sys.argv[1:]
sys.path.insert(0, GENERATED)

from distill.v1 import teacher_pb2 as pb  # noqa: E402
from distill.v1 import teacher_pb2_grpc  # noqa: E402

TOLERANCE = 1e-6
EXPECTED = json.loads((pathlib.Path(__file__).parent / "fixtures" / "expected.json").read_text())
ROWS = EXPECTED["features"]
TEMPERATURES = sorted(EXPECTED["softmax"], key=float)

worst = {}


def close(name, got, expected):
    """Largest difference of two lists, absolute or relative, whichever is smaller."""
    assert len(got) == len(expected), f"{name}: {len(got)} values, expected {len(expected)}"
    for g, e in zip(got, expected):
        difference = abs(g - e) / max(1.0, abs(e))
        worst[name] = max(worst.get(name, 0.0), difference)
        assert difference <= TOLERANCE, f"{name}: {g} is not {e}"


def floats(tensor):
    assert tensor.dtype == pb.D_TYPE_F32, tensor.dtype
    values = struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data)
    assert math.prod(tensor.shape) == len(values), tensor.shape
    return list(values)


def unpack(packed, count, bits):
    """Whole numbers of `bits` bits each, least significant bit first."""
    assert len(packed) == (count * bits + 7) // 8
    stream = int.from_bytes(packed, "little")
    return [(stream >> (i * bits)) & ((1 << bits) - 1) for i in range(count)]


def flat(rows):
    return [value for row in rows for value in row]


def request(encoding, temperatures, rows=ROWS, id=1, rule=0):
    data = struct.pack(f"<{len(rows) * len(rows[0])}f", *flat(rows))
    features = pb.Tensor(dtype=pb.D_TYPE_F32, shape=[len(rows), len(rows[0])], data=data)
    return pb.LabelRequest(
        id=id, client="interop", features=features, temperatures=temperatures, encoding=encoding,
        ensemble_rule=rule,
    )


def dense(kind):
    return pb.Encoding(dense=pb.DenseEncoding(kind=kind))


def check_dense(stub):
    every = [float(t) for t in TEMPERATURES]
    for kind, expected in [
        (pb.DENSE_KIND_PROBABILITIES, EXPECTED["softmax"]),
        (pb.DENSE_KIND_LOG_PROBABILITIES, EXPECTED["log_softmax"]),
    ]:
        response = stub.Label(request(dense(kind), every), timeout=10)
        assert [labels.temperature for labels in response.labels] == every
        for t, labels in zip(TEMPERATURES, response.labels):
            assert (labels.rows, labels.classes) == (len(ROWS), 7)
            close(f"dense {pb.DenseKind.Name(kind)}", floats(labels.dense.values), flat(expected[t]))
    response = stub.Label(request(dense(pb.DENSE_KIND_LOGITS), [1.0]), timeout=10)
    close("dense logits", floats(response.labels[0].dense.values), flat(EXPECTED["logits"]))


def check_top_k(stub):
    for k in [1, 3, 7]:
        encoding = pb.Encoding(top_k=pb.TopKEncoding(k=k))
        for t in TEMPERATURES:
            labels = stub.Label(request(encoding, [float(t)]), timeout=10).labels[0]
            ids = unpack(labels.top_k.packed_ids, len(ROWS) * k, 3)
            logs = floats(labels.top_k.log_probabilities)
            tails = floats(labels.top_k.log_tail_mass)
            for row, (p, log_p) in enumerate(zip(EXPECTED["softmax"][t], EXPECTED["log_softmax"][t])):
                order = sorted(range(7), key=lambda c: -p[c])[:k]
                assert ids[row * k:][:k] == order, (ids, order)
                close("top_k", logs[row * k:][:k], [log_p[c] for c in order])
                left = sum(p[c] for c in range(7) if c not in order)
                close("top_k tail", [math.exp(tails[row])], [left])


def check_hidden(stub):
    hidden = pb.Encoding(hidden=pb.HiddenEncoding())
    labels = stub.Label(request(hidden, [1.0]), timeout=10).labels[0]
    states = floats(labels.hidden.states)
    close("hidden", states, flat(EXPECTED["hidden"]))
    pieces = list(stub.FetchHead(pb.FetchHeadRequest(), timeout=10))
    head = struct.unpack(f"<{pieces[0].total_bytes // 4}f", b"".join(p.data for p in pieces))
    classes, width = pieces[0].weight_shape
    weight, bias = head[: classes * width], head[classes * width:]
    logits = [
        sum(weight[c * width + j] * states[row * width + j] for j in range(width)) + bias[c]
        for row in range(len(ROWS))
        for c in range(classes)
    ]
    close("hidden, rebuilt", logits, flat(EXPECTED["logits"]))


def check_ensemble(single, stub):
    """Of the model above and a second one, by either rule."""
    about = stub.Describe(pb.DescribeRequest(), timeout=30)
    assert len(about.members) == 2
    assert about.members[0].fingerprint == single.fingerprint, "the first member is the model above"
    fingerprints = {of.rule: of.fingerprint for of in about.rule_fingerprints}
    every = [float(t) for t in TEMPERATURES]
    for name, rule in [
        ("arithmetic", pb.ENSEMBLE_RULE_ARITHMETIC),
        ("geometric", pb.ENSEMBLE_RULE_GEOMETRIC),
    ]:
        probabilities = dense(pb.DENSE_KIND_PROBABILITIES)
        response = stub.Label(request(probabilities, every, rule=rule), timeout=10)
        assert response.fingerprint == fingerprints[rule]
        for t, labels in zip(TEMPERATURES, response.labels):
            expected = flat(EXPECTED["ensemble"][name][t])
            close(f"ensemble, {name}", floats(labels.dense.values), expected)


def check_stream(stub):
    probabilities = dense(pb.DENSE_KIND_PROBABILITIES)
    requests = [request(probabilities, [1.0], rows=[row], id=i) for i, row in enumerate(ROWS)]
    requests.insert(2, request(probabilities, [0.0], id=99))
    items = (pb.LabelStreamRequest(label=r) for r in requests)
    answers = {answer.id: answer for answer in stub.LabelStream(items, timeout=10)}
    assert answers.pop(99).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for i, expected in enumerate(EXPECTED["softmax"]["1.0"]):
        close("stream", floats(answers[i].response.labels[0].dense.values), expected)


def main():
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        about = stub.Describe(pb.DescribeRequest(), timeout=30)
        assert (about.classes, about.input.features.width, about.hidden_size) == (7, 12, 8)
        assert len(about.fingerprint) == 32
        checks = [check_dense, check_top_k, check_hidden, check_stream]
        for check in checks:
            check(stub)
        with grpc.insecure_channel(ENSEMBLE) as other:
            check_ensemble(about, teacher_pb2_grpc.TeacherServiceStub(other))
        try:
            stub.Label(request(dense(0), [0.0]), timeout=10)
            raise AssertionError("a temperature of 0 was answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert "temperatures[0]" in error.details(), error
    for name, difference in worst.items():
        print(f"{name}: largest difference from PyTorch {difference:.1e}")
    print(f"{len(checks) + 2} passed, 0 failed")


if __name__ == "__main__":
    main()

"""One runtime in one process: prepares a model, then times batches on command.

The driver (`bench/peers.py`) starts one of these per runtime, each in an interpreter of its own, and asks
them in turn, so that a noisy moment of the machine hits all of them. Protocol: one JSON object a line,
`{"shape": [batch, tokens], "repeat": n}` on standard input, `{"ms": [...]}` on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Forward = Callable[[np.ndarray], object]  # token ids (batch, tokens) int64 -> anything


def token_ids(batch: int, tokens: int, vocab_size: int = 30522) -> np.ndarray:
    """The same ids in every process: content words only, no padding."""
    return np.random.default_rng(batch * 1000 + tokens).integers(1000, vocab_size - 1, (batch, tokens))


def qla(args: argparse.Namespace) -> Forward:
    from qla_runtime import Engine

    engine = Engine.from_pretrained(args.package, num_threads=args.threads)
    return lambda ids: engine.forward(ids)


def load_torch_encoder(checkpoint: str):
    import torch
    from transformers import AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
            ).eval()

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Encoder().eval()


def torch_inputs(ids: np.ndarray):
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(ids))
    return tensor, torch.ones_like(tensor)


def torch_fp32(args: argparse.Namespace) -> Forward:
    import torch

    torch.set_num_threads(args.threads)
    model = load_torch_encoder(args.checkpoint)

    def forward(ids: np.ndarray):
        with torch.inference_mode():
            return model(*torch_inputs(ids))

    return forward


def torch_bf16(args: argparse.Namespace) -> Forward:
    import torch

    torch.set_num_threads(args.threads)
    model = load_torch_encoder(args.checkpoint).to(torch.bfloat16)

    def forward(ids: np.ndarray):
        with torch.inference_mode():
            return model(*torch_inputs(ids))

    return forward


def openvino(args: argparse.Namespace, precision: str) -> Forward:
    """Static shapes (one compiled model a shape); int8 by NNCF post-training quantization."""
    import openvino as ov

    core = ov.Core()
    compiled: dict[tuple[int, ...], object] = {}
    converted = ov.convert_model(load_torch_encoder(args.checkpoint), example_input=torch_inputs(token_ids(1, 64)))
    if precision == "int8":
        import nncf

        samples = [token_ids(1, n) for n in range(32, 384, 11)]
        as_inputs = lambda ids: [ids, np.ones_like(ids)]  # noqa: E731
        converted = nncf.quantize(
            converted,
            nncf.Dataset(samples, as_inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
    config = {
        "INFERENCE_NUM_THREADS": args.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }

    def forward(ids: np.ndarray):
        if ids.shape not in compiled:
            model = converted.clone()
            model.reshape({p: list(ids.shape) for p in model.inputs})
            compiled[ids.shape] = core.compile_model(model, "CPU", config).create_infer_request()
        request = compiled[ids.shape]
        request.infer([ids, np.ones_like(ids)])
        return request.get_output_tensor(0).data

    return forward


RUNTIMES: dict[str, Callable[[argparse.Namespace], Forward]] = {
    "qla": qla,
    "torch-fp32": torch_fp32,
    "torch-bf16": torch_bf16,
    "openvino-int8": lambda args: openvino(args, "int8"),
    "openvino-bf16": lambda args: openvino(args, "bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("--checkpoint", type=Path, help="Hugging Face folder (peers)")
    parser.add_argument("--package", help="qla package folder (qla)")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output; the protocol must stay clean
    forward = RUNTIMES[args.runtime](args)
    print(json.dumps({"ready": args.runtime}), file=channel, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids = token_ids(*request["shape"])
        times = []
        for _ in range(request["repeat"]):
            begin = time.perf_counter()
            forward(ids)
            times.append((time.perf_counter() - begin) * 1e3)
        print(json.dumps({"ms": times}), file=channel, flush=True)


if __name__ == "__main__":
    main()

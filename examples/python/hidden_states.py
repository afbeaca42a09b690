"""Below the tasks: token ids in, states and kept positions out. python examples/python/hidden_states.py"""

from __future__ import annotations

from qla_runtime import Engine

engine = Engine.from_pretrained()
ragged = [[101, 2040, 2626, 2009, 1029, 102], [101, 7592, 102]]  # two sequences, no padding

output = engine.forward(ragged, length=["fast", "full"])  # each its own length config
for state, kept, macs in zip(output.last_hidden_state, output.kept, output.macs, strict=True):
    print(f"{state.shape[0]} tokens of {state.shape[1]} numbers, {macs:,} MACs")
    for layer, positions in enumerate(kept, 1):
        print(f"  layer {layer} keeps {positions.tolist()}")

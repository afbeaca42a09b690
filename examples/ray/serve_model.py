"""Serves a model with Ray Serve, asks it once, and stops: python examples/ray/serve_model.py

A deployment that stays is `serve run examples.ray.serve_model:app`.
"""

from __future__ import annotations

import json
import urllib.request

from ray import serve

from qla_runtime.integrations.ray_serve import TextModel

app = TextModel.options(num_replicas=1, ray_actor_options={"num_cpus": 1}).bind("all-minilm-l6-v2")

if __name__ == "__main__":
    serve.run(app)
    body = json.dumps({"inputs": ["a bird sings", "it rains"], "length": "fast"}).encode()
    with urllib.request.urlopen("http://localhost:8000/", body) as answer:
        vectors = json.load(answer)
    print(f"{len(vectors)} vectors of {len(vectors[0])} numbers")
    serve.shutdown()

"""Speed: of the kernels, of the encoder, and beside other runtimes. docs/benchmarks.md; `qla bench --help`."""

from __future__ import annotations

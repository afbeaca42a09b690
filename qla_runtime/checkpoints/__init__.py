"""Reads checkpoints of transformers and sentence-transformers."""

from __future__ import annotations

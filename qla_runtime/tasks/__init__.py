"""What a model is for: from texts to what the encoder runs, and from its outputs to results."""

from __future__ import annotations

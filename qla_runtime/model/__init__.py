"""What a model is: its specification, its float form and its package."""

from __future__ import annotations

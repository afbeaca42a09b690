"""Length configs, and the policies that choose one for a call."""

from __future__ import annotations

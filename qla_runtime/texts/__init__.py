"""From files and strings to token ids."""

from __future__ import annotations

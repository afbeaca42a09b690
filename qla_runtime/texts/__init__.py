"""Reads texts from files and callers, and turns them into token ids."""

from __future__ import annotations

"""Scores of a model on labelled data, one file per kind of score."""

from __future__ import annotations

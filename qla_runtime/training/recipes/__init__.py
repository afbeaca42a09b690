"""The recipes: what ``qla train`` trains, one file each. :mod:`qla_runtime.training.recipe` says what that is."""

from __future__ import annotations

from qla_runtime.training.recipe import RecipeOptions
from qla_runtime.training.recipes.length_drop import LengthDropOptions
from qla_runtime.training.recipes.minilm import MiniLMOptions
from qla_runtime.training.recipes.qat import QatOptions

_ALL: tuple[type[RecipeOptions], ...] = (LengthDropOptions, MiniLMOptions, QatOptions)

RECIPES = {options.recipe: options for options in _ALL}
"""By the name on the command line."""

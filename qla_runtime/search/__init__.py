"""Which length configs are worth having: the room of ``qla search``.

============== ===========================================================================================
``pipeline``   the way through: read, evolve, choose, write
``options``    what a search is asked to do
``genome``     length configs as whole numbers on a grid; mutation, crossover, constant rates
``evolve``     the Pareto frontier and the generations that move it
``selection``  the data that accuracy is measured on
``cost``       what a config costs: arithmetic or time, as a share of keeping every token
``run_folder`` every measurement on disk as soon as it is made
``package``    the searched package: its shape, its identity, its new length configs
``plot``       the frontier as a picture
``command``    ``qla search``: arguments and words, and nothing else
============== ===========================================================================================

Importing this package imports neither torch nor matplotlib.
"""

from __future__ import annotations

from qla_runtime.search.options import SearchOptions
from qla_runtime.search.pipeline import search

__all__ = ["SearchOptions", "search"]

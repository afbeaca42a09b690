"""Which tokens survive each layer: the data, and its pictures for a terminal and for a browser.

::

    from qla_runtime.trace import trace

    found = trace(engine, question, context, ["full", "fast"])
    print(found.text(styled=True))
    found.write_html("trace.html")
"""

from __future__ import annotations

from qla_runtime.trace.follow import Trace, trace
from qla_runtime.trace.record import Part, Piece, Record, Run, Token

__all__ = ["Part", "Piece", "Record", "Run", "Token", "Trace", "trace"]

"""What everything that draws a picture shares."""

from __future__ import annotations

from qla_runtime.errors import UnsupportedError


def require_matplotlib(instead: str = "") -> None:
    """Checks that this interpreter can draw.

    Args:
        instead: what the message names beside installing matplotlib.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        remedy = "Run: pip install matplotlib" + (f"; or {instead}" if instead else "")
        raise UnsupportedError(f"drawing needs matplotlib, not installed here. {remedy}") from error

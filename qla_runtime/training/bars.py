"""Progress bars on standard error."""

from __future__ import annotations

from qla_runtime.progress import work_bar as bar

__all__ = ["bar"]

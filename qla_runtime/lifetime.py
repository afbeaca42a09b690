"""When an engine may be closed: not under the feet of a call that another thread is in."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from qla_runtime.errors import InputError

Method = TypeVar("Method", bound=Callable[..., Any])


class Lifetime:
    """The calls that an engine is in, and whether it may give up what it holds.

    It works without a lock, which a fork could copy in its locked state: each thread writes its own entry alone,
    and registers before it looks whether the engine is closed.
    """

    def __init__(self) -> None:
        self.closed = False
        self._calls: dict[int, int] = {}

    def close(self) -> bool:
        """Refuses calls from now on. True: none is running, so that everything may go now."""
        self.closed = True
        return not self._calls

    def enter(self) -> bool:
        """Registers a call, which :meth:`leave` ends. True: it is refused, because the engine is closed.

        A call that a running one makes is part of it, and is not refused.
        """
        me = threading.get_ident()
        depth = self._calls.get(me, 0)
        self._calls[me] = depth + 1
        return self.closed and not depth

    def leave(self) -> bool:
        """The end of a call. True: it was the last one of a closed engine."""
        me = threading.get_ident()
        depth = self._calls.pop(me) - 1
        if depth:
            self._calls[me] = depth
        return self.closed and not self._calls


def while_open(method: Method) -> Method:
    """A method of an object with a ``_lifetime``, refused once that is closed."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        refused = self._lifetime.enter()
        try:
            if refused:
                raise InputError("the engine is closed; open it again with Engine(path)")
            return method(self, *args, **kwargs)
        finally:
            if self._lifetime.leave():
                self._release()

    return cast(Method, checked)

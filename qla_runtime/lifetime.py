"""Closing an engine while other threads may still be inside its calls."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from qla_runtime.errors import InputError
from qla_runtime.fork_safe import renew_in_child

Method = TypeVar("Method", bound=Callable[..., Any])


class Lifetime:
    """Counts the running calls of an engine, and says when its resources may be released.

    It has no lock, because a fork could copy a lock in its locked state. Each thread writes only its own entry. A
    call registers before it checks whether the engine is closed.
    """

    def __init__(self) -> None:
        self.closed = False
        self._calls: dict[int, int] = {}
        renew_in_child(self)

    def renew(self) -> None:
        """After a fork: the calls of other threads do not run in the child, and so never end there."""
        me = threading.get_ident()
        self._calls = {me: self._calls[me]} if me in self._calls else {}

    def close(self) -> bool:
        """Refuses calls from now on. Returns True where no call is running: the engine may be released now."""
        self.closed = True
        return not self._calls

    def enter(self) -> bool:
        """Registers a call; :meth:`leave` ends it. Returns True where the call is refused: the engine is closed.

        A call from inside a running call of the same thread is part of that call, and is not refused.
        """
        me = threading.get_ident()
        depth = self._calls.get(me, 0)
        self._calls[me] = depth + 1
        return self.closed and not depth

    def leave(self) -> bool:
        """Ends a call. Returns True where it was the last one of a closed engine."""
        me = threading.get_ident()
        depth = self._calls.pop(me) - 1
        if depth:
            self._calls[me] = depth
        return self.closed and not self._calls


def while_open(method: Method) -> Method:
    """Decorates a method of an object with a ``_lifetime``: the method is refused once that is closed."""

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

"""Locks and imports that cannot block a forked child.

``fork`` copies only the calling thread. A plain lock that another thread held at that moment stays locked in the
child for ever. So does the lock that Python holds on a module while a thread imports it.
"""

from __future__ import annotations

import logging  # noqa: F401  an import of it during a fork would release a lock that it never took
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar, overload

Value = TypeVar("Value")


class Renewable(Protocol):
    """What other threads may have left in a state that they would have to end."""

    def renew(self) -> None:
        """Called in a forked child, which has none of these threads."""


_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_child(what: Renewable) -> None:
    """Has ``what`` renewed in every child that is forked while it exists."""
    _renewables.add(what)


class ForkSafeLock:
    """A lock for one thread at a time. A forked child gets a new lock, which is open.

    Guarded state must change in single assignments. A thread that was inside the lock has no copy in the child, so
    it never finishes its work there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_in_child(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock; waits for it first."""
        with self._lock:
            yield

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Holds the lock if it is free, and does not wait. Yields whether it is held."""
        lock = self._lock  # the thread that forks may be inside; then it must release the lock that it took
        mine = lock.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def renew(self) -> None:
        """In a forked child: a new lock."""
        self._lock = threading.Lock()


_importing = threading.RLock()


def importing() -> AbstractContextManager[Any]:
    """A lock for imports inside a function: ``with importing(): import x``. A fork waits until it is free."""
    return _importing


class lazy(Generic[Value]):  # noqa: N801  used as a decorator, as property is
    """``functools.cached_property`` without a lock. Before Python 3.12 that lock is shared by all instances.

    Several threads may compute the value at the same time. The value of one of them is kept.
    """

    def __init__(self, method: Callable[[Any], Value]) -> None:
        self._method = method
        self._name = method.__name__
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__.setdefault(self._name, self._method(instance))


def _after_in_child() -> None:
    _importing.release()
    for each in list(_renewables):
        each.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_after_in_child,
    )

"""Locks and imports that a forked child does not wait for.

``fork`` copies one thread alone. A plain lock that another thread held at that moment stays locked in the child
for ever. Python locks a module in the same way while a thread imports it.
"""

from __future__ import annotations

import logging  # noqa: F401  imported while a fork waits, it would release a lock that it never took
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """Lets one thread in at a time; new and open in a forked child.

    What it guards must be changed in single assignments: the thread that was inside has no copy in the child and
    never finishes there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits until no other thread is inside."""
        with self._lock:
            yield

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Does not wait; False where another thread is inside."""
        lock = self._lock  # the thread that forks may be inside: it releases the lock that it took
        mine = lock.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


_importing = threading.RLock()


def importing() -> AbstractContextManager[Any]:
    """To be held (``with``) around an import inside a function: a thread that forks waits for the import's end."""
    return _importing


class lazy(Generic[Value]):  # noqa: N801  used as a decorator, as property is
    """``functools.cached_property`` without its lock, which Python before 3.12 shares between all instances.

    Threads that are first together may each compute the value; one of them stays.
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
    for lock in list(_locks):
        lock._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_after_in_child,
    )

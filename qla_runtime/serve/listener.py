"""The socket that a server listens on."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterator

from qla_runtime.errors import InputError

SO_ATTACH_FILTER = 26
"""Of Linux (asm-generic/socket.h); Python has no name for it."""


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound to an address, and closed in the end. Whoever serves it has it listen.

    Raises:
        InputError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--host {host} --port {port} cannot be listened on ({error.strerror}); give "
                "another address or port"
            ) from None
        yield listener


def address(listener: socket.socket) -> str:
    """The address as a URL has it."""
    host, port, *_ = listener.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def let_in_no_more(listener: socket.socket) -> None:
    """Has the kernel drop whatever comes to a listening socket but not to its connections.

    To close the socket would reset connections that the kernel has made and nobody has accepted yet. After this
    none is added, so all of them can be accepted first. A client that comes later tries again after a second, and
    is then refused as from a closed port.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):  # a system without filters: such a connection is reset
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

"""``qla_get_config`` through the C door: callers of this header, of an older one, and of none."""

from __future__ import annotations

import ctypes
from pathlib import Path

import package_tools
import pytest

import qla_runtime

SIZE = 88  # of qla_config_info on x86-64
FIELD_ENDS = {8, 16, 40, 44, 48, 56, 64, 72, 80, 88}  # and 48 too: 44 with its padding


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(qla_runtime.__file__).parent / "libqla.so"))


@pytest.fixture(scope="module")
def engine(library, tmp_path_factory) -> ctypes.c_void_p:
    folder = package_tools.tiny_package().save(tmp_path_factory.mktemp("package"))
    opened = ctypes.c_void_p()
    assert library.qla_open(str(folder).encode(), None, ctypes.byref(opened)) == 0
    yield opened
    library.qla_free(opened)


@pytest.mark.parametrize("size", range(SIZE + 16))
def test_struct_size_ends_with_a_field_and_bounds_what_is_written(library, engine, size):
    info = ctypes.create_string_buffer(b"\xee" * (SIZE + 16), SIZE + 16)
    ctypes.c_size_t.from_buffer(info).value = size
    status = library.qla_get_config(engine, 0, info)
    assert (status == 0) == (size in FIELD_ENDS)
    assert set(info.raw[size if status == 0 else 8 :]) <= {0xEE}
    if size >= 16 and status == 0:
        name = ctypes.c_char_p.from_buffer(info, 8).value
        assert name == b"full"


def test_a_missing_struct_is_named(library, engine):
    library.qla_last_error.restype = ctypes.c_char_p
    assert library.qla_get_config(engine, 0, None) == 1
    assert library.qla_last_error() == b"qla_config_info is NULL"

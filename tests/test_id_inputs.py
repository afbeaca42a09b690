"""What ``forward`` accepts as ids: containers, tensors, masked arrays, bools, and numbers of any size."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError

IDS = [[2, 7, 9, 3], [2, 8, 3]]
PADDED = np.array([[2, 7, 9, 3], [2, 8, 3, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return Engine(tiny_package("embedding").save(tmp_path_factory.mktemp("packages") / "e"))


def bits(engine: Engine, *arguments, **named) -> bytes:
    return engine.forward(*arguments, **named).padded().tobytes()


def test_any_ordered_collection_of_ids(engine):
    expected = bits(engine, IDS)
    ragged = np.empty(2, object)
    ragged[:] = IDS
    for ids in (
        tuple(map(tuple, IDS)),
        (row for row in IDS),
        [iter(row) for row in IDS],
        [np.array(row, np.uint64) for row in IDS],
        [[np.int16(i) for i in row] for row in IDS],
        [range(2, 4), [2]],
        ragged,
    ):
        found = bits(engine, ids)
        assert found == expected or isinstance(ids[0], range)
    for dtype in (np.int8, np.uint8, np.int64, np.uint64, ">i4"):
        assert bits(engine, PADDED.astype(dtype), MASK) == expected
    assert (
        bits(engine, PADDED, MASK.astype(bool)) == bits(engine, PADDED.tolist(), (MASK == 1).tolist()) == expected
    )
    assert bits(engine, [range(2, 5)]) == bits(engine, [[2, 3, 4]])


def test_tensors(engine):
    torch = pytest.importorskip("torch", reason="torch comes with the [convert] extra")
    expected = bits(engine, IDS)
    assert bits(engine, torch.tensor(PADDED), torch.tensor(MASK)) == expected
    assert bits(engine, torch.tensor(PADDED, dtype=torch.int32), torch.tensor(MASK).bool()) == expected
    assert bits(engine, [torch.tensor(row) for row in IDS]) == expected
    for wrong, words in (
        (torch.tensor(PADDED).float(), "float32.*integers"),
        (torch.tensor(3), "dimensions"),
        (torch.tensor([2, 3]), "1 dimensions.*Wrap"),
        (torch.tensor(PADDED).bool(), "bool.*integers"),
        (torch.zeros((1, 2), device="meta", dtype=torch.int64), "meta"),
        (torch.ones((1, 2), requires_grad=True), "requires grad|float32"),
    ):
        with pytest.raises(InputError, match=words):
            engine.forward(wrong)


def test_pandas(engine):
    pandas = pytest.importorskip("pandas", reason="pandas is not among the test requirements")
    assert bits(engine, pandas.DataFrame(PADDED), pandas.DataFrame(MASK)) == bits(engine, IDS)
    assert bits(engine, pandas.Series(IDS, index=[5, 6])) == bits(engine, IDS)


@pytest.mark.parametrize(
    "ids, words",
    [
        ([[True, 2]], [r"input_ids[0] holds True or False", "int()"]),
        ([[np.True_, 2]], ["input_ids[0] holds True or False"]),
        ([np.array([True, False])], ["dtype bool", "integers"]),
        (np.ma.masked_array([[1, 2, 3]], mask=[[0, 1, 0]]), ["input_ids is a masked array", "attention_mask"]),
        ([np.ma.masked_array([1, 2], mask=[0, 1])], ["input_ids[0] is a masked array"]),
        ([{2, 3}], ["input_ids[0] is of type set", "no order"]),
        ({2, 3}, ["input_ids is of type set", "no order"]),
        ({"input_ids": IDS}, ["of type dict", "['input_ids']"]),
        ([{"a": 1}], ["input_ids[0] is of type dict"]),
        ("who", ["'who'", "list of integer sequences"]),
        (["who"], ["input_ids[0] is 'who'", "sequence of integers"]),
        (b"who", ["b'who'"]),
        ([b"who"], ["input_ids[0] is b'who'"]),
        ([[10**400, 2]], ["input_ids[0][0] is 1000", "32 bits"]),
        ([[2, 10**5000]], ["input_ids[0][1] is an integer of 16610 bits", "32 bits"]),
        ([[2, -(10**5000)]], ["input_ids[0][1] is an integer of 16610 bits", "32 bits"]),
        ([[2**63, -1]], ["input_ids[0][0] is 9223372036854775808", "32 bits"]),
        ([[2, Fraction(3)]], ["dtype object", "integers"]),
        ([[2, Decimal(3)]], ["dtype object", "integers"]),
        ([[2, None]], ["dtype object", "integers"]),
        ([[2, float("nan")]], ["float64", "integers"]),
        ([[2, 3j]], ["complex128", "integers"]),
        (np.array(5), ["0 dimensions"]),
        ([np.array(5)], ["input_ids[0]", "single value", "Wrap"]),
        ([10**5000], ["input_ids[0] is an integer of 16610 bits, a single value"]),
        (np.array([["2", "3"]]), ["dtype <U1", "integers"]),
        (np.array([["2020-01-01"]], "datetime64[D]"), ["datetime64", "integers"]),
        (iter(()), ["input_ids is empty"]),
        (int, ["input_ids is <class 'int'>"]),
    ],
)
def test_what_are_no_ids(engine, ids, words):
    with pytest.raises(InputError) as error:
        engine.forward(iter(()) if words == ["input_ids is empty"] else ids)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 300


def test_masks_are_no_place_for_other_numbers(engine):
    for mask, words in (
        (np.ma.masked_array(MASK, mask=MASK == 0), "attention_mask is a masked array"),
        ([[1, 1, 1, 10**400], [1, 1, 1, 0]], "may hold 0 and 1 only"),
        ([[1.0, 1, 1, 1], [1, 1, 1, 0]], "float64"),
    ):
        with pytest.raises(InputError, match=words):
            engine.forward(PADDED, mask)
    with pytest.raises(InputError, match=r"token_type_ids\[0\] holds True or False"):
        engine.forward(IDS, token_type_ids=[[True, 0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    "value", [10**400, lambda: 10**5000, 0, -(10**400), True, np.True_, 2.0, Fraction(2), Decimal(2), "2"]
)
def test_counts(engine, value):
    """Numbers of threads and streams; what is no whole number in range is refused in one short sentence."""
    value = value() if callable(value) else value
    for name in ("num_threads", "streams"):
        with pytest.raises(InputError, match=f"{name} is ") as error:
            Engine(engine.path, **{name: value})
        assert len(str(error.value)) < 200
    assert Engine(engine.path, num_threads=np.int8(2)).num_threads == 2

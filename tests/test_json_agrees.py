"""Package files are parsed twice: what the engine accepts, Python's json must read alike."""

from __future__ import annotations

import json
import random
import subprocess

import cmake_tools
import pytest
from package_tools import edit_bytes, tiny_package

from qla_runtime import Engine, PackageError

REFUSED = [
    b"\xef\xbb\xbf{}",  # a byte order mark
    b"\xff\xfe{\x00}\x00",  # UTF-16
    b"{}\0",
    b"{}\0 {{{ \xff",
    b'{"a\0": 1}',
    b'{"a": "\0"}',
    b"\0",
    b"{} {}",
    b"{}x",
    b"[1,]",
    b'{"a": 1,}',
    b'{"a": 1, "a": 1}',
    b'{"a": 1, "\\u0061": 2}',  # the same key, escaped
    b'["\\ud800"]',  # Python reads lone surrogates, no UTF-8 text holds them
    b'["\\udc00\\ud800"]',
    b'["\xed\xa0\x80"]',
    b'["\xc0\xaf"]',
    b'["\xff"]',
    b'["\t"]',
    b"[NaN]",
    b"[Infinity]",
    b"[-Infinity]",
    b"[1e999]",
    b"[-1e999]",
    b"[1" + b"0" * 400 + b"]",
    b"[18446744073709551616]",  # 2**64
    b"[-9223372036854775809]",  # -2**63 - 1
    b"[01]",
    b"[+1]",
    b"[.5]",
    b"[1.]",
    b"[0x10]",
    b"[1_000]",
    b"/* a */ {}",
    b"// a\n{}",
    b"{'a': 1}",
    b"[True]",
    b"",
    b" ",
    b"[" * 17 + b"]" * 17,
    b"\xc2\xa0{}",  # a no-break space is no white space of JSON
    b"\x0b{}",
]
READ = [
    b" \t\r\n{}\n",
    b'{"a": [1, -1, 0, -0, 0.1, 1e300, 1e-300, 5e-324, 1e-999, -0.0, 2.5E+3]}',
    b"[18446744073709551615, -9223372036854775808, 9007199254740993]",
    b"[0.30000000000000004, 123456789012345678901234567890.0, 2.2250738585072011e-308]",
    b'["\\u0000\\u001f\\"\\\\\\/\\b\\f\\n\\r\\t", "\\ud83d\\ude00", "\xf0\x9f\x98\x80", "\xc3\xa9"]',
    b'{"": null, "b": [true, false, [], {}]}',
    b'"text"',
    b"7",
    b"[" * 16 + b"]" * 16,
]


@pytest.fixture(scope="module")
def echo():
    """The engine's reading of texts: their values, or the reason of a refusal."""
    build = cmake_tools.cpp_build()
    if build.no_tests:
        pytest.skip(build.no_tests)

    def read(texts: list[bytes]) -> list[str]:
        lines = "".join(text.hex() + "\n" for text in texts)
        program = build.folder / "tests" / "cpp" / "json_echo"
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return read


def canonical(value: object) -> str:
    """Tells 1 from 1.0 and from true, and -0.0 from 0.0."""
    return json.dumps(value, sort_keys=True)


def disagreement(text: bytes, engine: str) -> str | None:
    if engine.startswith("refused: "):
        return None
    try:
        python = canonical(json.loads(text.decode()))
    except ValueError as error:
        return f"{text!r}: the engine reads {engine}, Python says {error}"
    return None if python == canonical(json.loads(engine)) else f"{text!r}: {engine} and {python}"


def test_what_is_no_json_or_not_read_alike_is_refused(echo):
    for text, answer in zip(REFUSED, echo(REFUSED), strict=True):
        assert answer.startswith("refused: text: "), (text, answer)


def test_what_is_json_is_read_alike(echo):
    for text, answer in zip(READ, echo(READ), strict=True):
        assert not answer.startswith("refused: "), (text, answer)
        assert disagreement(text, answer) is None


def test_mutated_texts_are_read_alike_or_refused(echo):
    package = tiny_package("sequence-classification")
    sources = [json.dumps(package.config), json.dumps(package.length_configs, indent=1)]
    sources = [source.encode() for source in sources] + READ
    pieces = [
        b"\0",
        b"\xef\xbb\xbf",
        b'"',
        b"\\",
        b"\\u00",
        b"\\ud800",
        b"e9",
        b"E400",
        b"-",
        b".",
        b"0",
        b"9" * 20,
    ]
    pieces += [
        b"9" * 20,
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"1",
        b"NaN",
        b"\xff",
        b"\xed\xa0\x80",
        b"\n",
        b"/",
        b"true",
    ]
    chance = random.Random(3)
    texts = []
    for _ in range(3000):
        text = bytearray(chance.choice(sources))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text) + 1)
            text[at : at + chance.choice([0, 0, 1, 5])] = chance.choice(pieces)
        texts.append(bytes(text))
    answers = echo(texts)
    assert [d for text, answer in zip(texts, answers, strict=True) if (d := disagreement(text, answer))] == []
    assert sum(not answer.startswith("refused: ") for answer in answers) > 100, "hardly anything was compared"


@pytest.mark.parametrize("file", ["config.json", "length_configs.json"])
@pytest.mark.parametrize(
    "change, rule",
    [
        (lambda text: text + b"\0 {{{ \xff", "a NUL byte"),
        (lambda text: b"\xef\xbb\xbf" + text, "byte order mark"),
        (lambda text: text.decode().encode("utf-16"), "not valid JSON"),
        (lambda text: text + b" {}", "not valid JSON"),
        (lambda text: text.replace(b"1", b"1e999", 1), "out of range"),
        (lambda text: text.replace(b"1", b"1" + b"0" * 400, 1), "out of range|does not fit 64 bits"),
    ],
)
def test_a_package_that_the_two_would_read_differently(tmp_path, file, change, rule):
    path = tiny_package().save(tmp_path)
    edit_bytes(path, file, change)
    with pytest.raises(PackageError, match=f"{file}: .*({rule})"):
        Engine(path)

"""Whom a server lets in: sizes, keys, slow and half-open clients, and too many at once."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import serve_tools
from serve_tools import EMBEDDER, READER, Answer, Served

KEY = {"authorization": "Bearer sesame"}
LONG = "It is a sentence that is long enough to take some time. " * 8


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """A server with small limits. Every test leaves it able to answer."""
    limits = ("--max-payload-bytes", "3000", "--read-timeout-s", "0.4", "--drain-s", "0")
    with serve_tools.running(EMBEDDER, *limits, environment={"QLA_API_KEY": "sesame"}) as served:
        yield served


@pytest.fixture(autouse=True)
def answers_afterwards(guarded: Served) -> Iterator[None]:
    yield
    assert guarded.post("/embed", {"inputs": "a good request"}, KEY).status == 200


def dial(served: Served, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection((served.host, served.port), timeout=10)
    connection.sendall(sent)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    connection.close()
    return b"".join(parts)


HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\ncontent-type: application/json\r\n"


# ------------------------------------------------------------------------------------------------- sizes


def test_a_body_that_says_it_is_too_large(guarded):
    found = guarded.post("/embed", {"inputs": "x" * 3000}, KEY)
    assert found.status == 413
    assert "3000 (--max-payload-bytes)" in found.json["error"] and found.json["error_type"] == "Validation"


def test_a_body_that_turns_out_too_large(guarded):
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    answer = all_of(dial(guarded, HEAD + b"transfer-encoding: chunked\r\n\r\n" + 4 * chunk))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"more than 3000 bytes" in answer


def test_the_dialect_is_that_of_the_path(guarded):
    found = guarded.post("/v1/embeddings", {"input": "x" * 3000}, KEY)
    assert found.status == 413 and found.json["error"]["type"] == "invalid_request_error"


def test_a_client_that_sends_all_before_it_reads(guarded):
    """It gets its answer, and may use the connection again."""
    with contextlib.closing(guarded.connect()) as connection:
        found = serve_tools.exchange(connection, "POST", "/embed", b"x" * 5_000_000, KEY)
        assert found.status == 413
        assert serve_tools.exchange(connection, "POST", "/embed", {"inputs": "x"}, KEY).status == 200


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"9" * 30])
def test_a_length_that_is_none(guarded, length):
    answer = all_of(dial(guarded, HEAD + b"content-length: " + length + b"\r\n\r\n{}"))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


# -------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("headers", "said"),
    [({}, "has no API key"), ({"authorization": "Bearer open"}, "has another API key"),
     ({"authorization": "sesame"}, "has another API key"), ({"authorization": "Bearer sesame "}, None)],
)  # fmt: skip
def test_a_key(guarded, headers, said):
    found = guarded.post("/embed", {"inputs": "x"}, headers)
    assert found.status == (200 if said is None else 401)
    assert said is None or said in found.json["error"]


def test_what_needs_no_key(guarded):
    assert {guarded.get(path).status for path in ("/health", "/ready", "/metrics")} == {200}
    assert {guarded.get(path).status for path in ("/info", "/v1/models")} == {401}
    assert guarded.get("/info", KEY).status == 200


# -------------------------------------------------------------------------------------- slow and half-open


@pytest.mark.parametrize(
    "sent", [b"", b"POST /em", HEAD, HEAD + b"content-length: 50\r\n\r\n{",
             HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab"],
    ids=["nothing", "part of a line", "part of a head", "part of a body", "part of a chunk"],
)  # fmt: skip
def test_a_request_that_does_not_end(guarded, sent):
    began = time.monotonic()
    answer = all_of(dial(guarded, sent))
    assert time.monotonic() - began < 5
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_drips(guarded):
    """One byte at a time does not extend the time for a request."""
    connection = dial(guarded)
    began = time.monotonic()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for i in range(100):
            connection.sendall(HEAD[i : i + 1])
            time.sleep(0.05)
    connection.close()
    assert time.monotonic() - began < 4


def test_slow_clients_take_no_place_from_others(guarded):
    slow = [dial(guarded, HEAD + b"content-length: 50\r\n\r\n{") for _ in range(100)]
    began = time.monotonic()
    assert guarded.post("/embed", {"inputs": "a good request"}, KEY).status == 200
    assert time.monotonic() - began < 1
    for connection in slow:
        connection.close()


def test_an_idle_connection_may_stay(guarded):
    """The time limit is for requests; between two of them a connection waits as long as it likes."""
    with contextlib.closing(guarded.connect()) as connection:
        for _ in range(2):
            found = serve_tools.exchange(connection, "POST", "/embed", {"inputs": "x"}, KEY)
            assert found.status == 200
            time.sleep(1.0)


def test_what_is_no_http(guarded):
    answer = all_of(dial(guarded, b"\x16\x03\x01 hello\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"error":"this is no HTTP/1.1 request;' in answer


H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
"""What Java's HttpClient adds to each request."""
BODY = b'{"inputs":"x","dimensions":1}'


@pytest.mark.parametrize("cut", [0, 40, len(HEAD), -len(BODY), -5])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_would_rather_speak_another_protocol(guarded, version, cut):
    length = b"content-length: %d\r\n\r\n" % len(BODY)
    request = HEAD.replace(b"HTTP/1.1", b"HTTP/" + version) + H2C + length + BODY
    connection = dial(guarded, request[:cut])
    time.sleep(0.05)
    connection.sendall(request[cut:])
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    assert (answer.status, answer.read()) == (200, b"[[-1.0]]")
    connection.close()


def test_hundreds_of_such_requests_at_once(guarded):
    """They come in one piece, and each is answered in its turn."""
    request = HEAD.replace(b"POST /embed", b"GET /health") + H2C + b"\r\n"
    last = request.replace(b"Upgrade,", b"close,")
    answer = all_of(dial(guarded, 500 * request + last))
    assert answer.count(b"HTTP/1.1 200 ") == 501


@pytest.mark.parametrize("more", [b"", b"connection: upgrade\r\nupgrade: a\r\n"])
@pytest.mark.parametrize("target", [b"x:1", b"/embed"])
def test_what_is_for_a_proxy(guarded, target, more):
    answer = all_of(dial(guarded, b"CONNECT %s HTTP/1.1\r\n%s\r\n" % (target, more)))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("endless", [b"x: " + b"y" * 200_000, b"x: y\r\n" * 20_000])
def test_a_head_without_an_end(guarded, endless):
    answer = all_of(dial(guarded, HEAD + endless))
    assert answer.startswith(b"HTTP/1.1 431 ") and b"more than 65536 bytes" in answer


def test_a_long_head_and_path(guarded):
    assert guarded.post("/embed", {"inputs": "x"}, {**KEY, "x-long": "y" * 60_000}).status == 200
    found = guarded.get("/" + "x" * 60_000, KEY)
    assert (found.status, found.json["error_type"]) == (404, "NotFound")


def test_a_body_that_is_compressed(guarded):
    with contextlib.closing(guarded.connect()) as connection:
        for encoding, status in (("gzip", 415), ("identity", 200), ("br", 415)):
            headers = {**KEY, "content-encoding": encoding}
            found = serve_tools.exchange(connection, "POST", "/embed", {"inputs": "x"}, headers)
            assert found.status == status
    assert found.json["error"].startswith("content-encoding is 'br', and this server reads plain bodies alone")


def test_clients_that_leave(guarded):
    """Before the body's end, and before the answer."""
    for sent in (HEAD + b"content-length: 50\r\n\r\n{", HEAD + b'content-length: 14\r\n\r\n{"inputs":"x"}'):
        for _ in range(20):
            dial(guarded, sent).close()


# --------------------------------------------------------------------------------------------- too many


def test_more_requests_than_the_server_takes():
    with serve_tools.running(READER, "--max-concurrent-requests", "2", "--drain-s", "0") as served:
        body = {"inputs": {"question": "How long is it?", "context": LONG}}
        found: list[Answer] = []
        threads = [threading.Thread(target=lambda: found.append(served.post("/", body))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [each.status for each in found]
        refused = [each for each in found if each.status == 429]
        assert set(statuses) == {200, 429}
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert refused[0].json["error_type"] == "Overloaded"
        assert "--max-concurrent-requests" in refused[0].json["error"]
        assert len({each.body for each in found if each.status == 200}) == 1
        assert served.post("/", body).status == 200
        assert served.metric("te_request_failure") == len(refused)

"""Connections: requests under way end at once when nobody wants them any more, keys go to no other server, certificates
are checked."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from assent import http
from assent.http import Client, Patience, ServerAnswerError, ServerUnavailable, run, together

CERTIFICATE = Path(__file__).parent / "localhost.pem"  # its key was made for these tests
Act = Callable[[socket.socket], object]


@contextmanager
def server(act: Act, tls: bool = False) -> Iterator[str]:
    """Its URL; each connection is given to `act` in a thread of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def serve(peer: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(peer, server_side=True) if tls else peer as own:
            act(own)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def request(peer: socket.socket) -> str:
    """The next request on this connection, in full."""
    text = b""
    while b"\r\n\r\n" not in text or not text.endswith(b"{}"):
        part = peer.recv(65536)
        if not part:
            raise OSError("no further request")
        text += part
    return text.decode()


def reply(peer: socket.socket, body: object = 1, status: str = "200 OK", *headers: str) -> None:
    payload = json.dumps(body)
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(payload)}", *headers]
    peer.sendall(("\r\n".join(lines) + "\r\n\r\n" + payload).encode())


def ask(client: Client, timeout: float = 60.0, retries: int = 0) -> Any:
    patience = Patience(timeout, time.monotonic() + 2 * timeout, retries, pause=0.01)
    return client.ask("/x", {}, lambda answer: answer, patience, expected="a number", failed="gave none")


# ---- nobody wants it any more


def hang(peer: socket.socket) -> None:
    request(peer)
    peer.recv(1)


def drip(peer: socket.socket) -> None:
    request(peer)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        peer.sendall(b" ")
        time.sleep(0.05)


def fail(peer: socket.socket) -> None:
    request(peer)
    reply(peer, "busy", "503 Busy", "Retry-After: 50")


def handshake(peer: socket.socket) -> None:
    peer.recv(65536)
    peer.recv(1)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """A signal that raises KeyError in the main thread."""

    def ring(*_: object) -> None:
        raise KeyError("alarm")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(url: str) -> None:
    """Two requests, of which one waits for the other, end within a second after the signal."""
    client = Client("S", url)
    begun = time.monotonic()
    with alarm(0.5), pytest.raises(KeyError):
        run(together([partial(ask, client, retries=5)] * 3, 2))
    assert 0.4 < time.monotonic() - begun < 1.5
    while asyncio.all_tasks(http._loop()):
        assert time.monotonic() - begun < 1.5, "a request is still under way"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("act", "scheme"),
    [(hang, "http"), (drip, "http"), (fail, "http"), (handshake, "https")],
    ids=["hang", "drip", "pause", "handshake"],
)
def test_an_exception_here_ends_what_is_under_way(act: Act, scheme: str):
    left = threading.Event()

    def watched(peer: socket.socket) -> None:
        try:
            act(peer)
        finally:
            left.set()

    with server(watched) as url:
        interrupted(url.replace("http", scheme, 1))
        gc.collect()  # httpx leaves it to Python to close what is cancelled in a handshake
        assert left.wait(1.0), "the connection is still open"


@pytest.mark.parametrize("act", [hang, drip])
def test_so_it_does_over_tls(act: Act, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with server(act, tls=True) as url:
        interrupted(url)


def test_so_it_does_where_nobody_takes_the_connection():
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        others = [socket.socket() for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())  # the queue is full now, and packets that open another are dropped
        interrupted(f"http://127.0.0.1:{full.getsockname()[1]}")
        with pytest.raises(ServerUnavailable, match=r"timed out after 0\.2 s \(1x\)"):
            run(ask(Client("S", f"http://127.0.0.1:{full.getsockname()[1]}"), timeout=0.2))
        for other in others:
            other.close()


def test_a_handshake_that_hangs_has_the_same_limit():
    with server(handshake) as url, pytest.raises(ServerUnavailable, match=r"timed out after 0\.2 s \(1x\)"):
        run(ask(Client("S", url.replace("http", "https", 1)), timeout=0.2))


def test_the_first_error_ends_the_others():
    async def act(number: int) -> int:
        started.append(number)
        if number == 1:
            raise ServerAnswerError("one")
        await asyncio.sleep(60)
        return number

    started: list[int] = []
    begun = time.monotonic()
    with pytest.raises(ServerAnswerError, match="^one$"):
        run(together([partial(act, number) for number in range(9)], 2))
    assert started in ([0, 1], [0, 1, 2])  # 2 may take the place of 1 just before it ends
    assert time.monotonic() - begun < 5


# ---- where it runs


def test_it_runs_beside_a_loop_and_in_a_child():
    async def seven() -> int:
        await asyncio.sleep(0)
        return 7

    async def notebook() -> int:
        return run(seven())

    assert asyncio.run(notebook()) == 7
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # ends it
        os._exit(run(seven()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_connection_serves_several_requests():
    connections = []

    def act(peer: socket.socket) -> None:
        connections.append(peer)
        while request(peer):
            reply(peer)

    with server(act) as url:
        client = Client("S", url)
        assert [run(ask(client)) for _ in range(5)] == [1] * 5
    assert len(connections) == 1


# ---- to whom it goes


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
def test_a_redirect_is_an_error_and_takes_the_key_nowhere(status: str):
    reached: list[str] = []
    asked: list[str] = []

    def elsewhere(peer: socket.socket) -> None:
        reached.append(request(peer))

    with server(elsewhere) as other:

        def redirect(peer: socket.socket) -> None:
            asked.append(request(peer))
            reply(peer, "", status, f"Location: {other}/x?key=an0therkey")

        with server(redirect) as url, pytest.raises(ServerAnswerError) as caught:
            run(ask(Client("S", url, "s3cretkey"), retries=3))
    where = f"answered {status}, to {other}/x?key=[key] (redirects are not followed)"
    assert where in str(caught.value) and "s3cretkey" not in str(caught.value)
    assert len(asked) == 1 and "Bearer s3cretkey" in asked[0] and not reached


def test_proxies_are_ignored(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    with server(lambda peer: request(peer) and reply(peer)) as url:
        assert run(ask(Client("S", url))) == 1


def test_a_key_that_no_header_can_carry_is_not_shown():
    for key in ("k3y\n", " k3y", "k3y ", "kéy"):
        with pytest.raises(http.ConfigError, match="no header can carry") as caught:
            Client("S", "http://h", key)
        assert key.strip() not in str(caught.value)


# ---- certificates


def test_a_certificate_must_be_trusted(monkeypatch):
    asked: list[str] = []

    def act(peer: socket.socket) -> None:
        asked.append(request(peer))
        reply(peer)

    with server(act, tls=True) as url:
        with pytest.raises(ServerAnswerError, match="cannot be trusted: self-signed certificate"):
            run(ask(Client("S", url, "s3cretkey"), retries=3))
        assert not asked
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert run(ask(Client("S", url, "s3cretkey"))) == 1
        assert "Bearer s3cretkey" in asked[0]


def test_a_certificate_of_another_host(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with server(request, tls=True) as url, pytest.raises(ServerAnswerError, match="cannot be trusted: .*127.0.0.2"):
        run(ask(Client("S", url.replace("127.0.0.1", "127.0.0.2"))))


# ---- broken answers


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off the connection"),
        (b"HTTP/1.1 200 OK\r\nX-Ha", "broke off the connection"),
        (b"hello\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1", "broke off its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1", "broke off its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n1", "illegal chunk header"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "Receive buffer too long"),
    ],
)
def test_a_broken_answer_is_named_and_asked_again(answer: bytes, reason: str):
    asked: list[str] = []

    def act(peer: socket.socket) -> None:
        asked.append(request(peer))
        peer.sendall(answer)

    with server(act) as url, pytest.raises(ServerUnavailable, match=rf"{reason}.* \(2x\)\."):
        run(ask(Client("S", url), retries=1))
    assert len(asked) == 2


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 80, "a..b"])
def test_a_name_that_nobody_has(host: str):
    with pytest.raises(ServerUnavailable, match=r"its name is unknown \(1x\)"):
        run(ask(Client("S", f"http://{host}")))


def test_a_host_of_which_no_address_takes_the_connection(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    with pytest.raises(ServerUnavailable, match=r"refused the connection \(1x\)"):
        run(ask(Client("S", f"http://two.example:{port}")))

"""HTTP servers on this machine that answer as a test tells them to, faults included."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One request: its server's `respond` is called with it. `body` is what was posted, None for a GET."""

    server: FakeServer
    body: Any = None

    def do_GET(self) -> None:
        try:
            self.server.respond(self)
        except OSError:
            pass  # whoever asked has left

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def say(self, content: object, status: int = 200, **headers: str) -> None:
        """Answers with that text, or anything else as JSON."""
        payload = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    """Serves from a thread until `stop`, which sets `released`: what hangs waits for that."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.lock = threading.Lock()
        self.released = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def respond(self, handler: Handler) -> None:
        raise NotImplementedError

    def handle_error(self, *args: object) -> None:
        pass

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


def hang(handler: Handler) -> None:
    handler.server.released.wait(30)


def drop(handler: Handler) -> None:
    handler.connection.close()


def drip(handler: Handler) -> None:
    """An answer that begins and never ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.server.released.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()

"""A file server that fails as servers do: at random, or for everyone for a while."""

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Flaky(ThreadingHTTPServer):
    """Files below a folder over HTTP, ranges too."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.rate, self.random, self.did = folder, 0.0, random.Random(0), Counter[str]()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self) -> str:
        """What to do to a request: nothing, or one of four faults."""
        with self.lock:
            fault = "" if self.random.random() >= self.rate else self.random.choice(["503", "500", "reset", "cut"])
            self.did[fault] += 1
        return fault

    def handle_error(self, request, client_address) -> None:
        """A client that is gone is none of our business."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        fault = self.server.fault()
        path = self.server.folder / self.path.lstrip("/")
        if fault == "reset" or (fault == "cut" and not body):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault) if fault.isdigit() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, first = path.read_bytes(), 0
        whole = len(data)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or whole - 1), whole - 1)
            data = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Flaky]:
    server = Flaky(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

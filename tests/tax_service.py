"""A tax service on this machine, that answers what a test says and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from metering.stack.probe import free_port


class _Answering(BaseHTTPRequestHandler):
    """Answers each POST with what the test said, and keeps what was asked."""

    answer: Callable[[bytes], tuple[int, bytes]]
    asked: list[tuple[Mapping[str, str], bytes]]

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        self.asked.append((dict(self.headers), body))
        status, content = type(self).answer(body)
        with suppress(ConnectionError):  # who asked may have gone
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is overridden
        pass


@contextmanager
def served(
    answer: Callable[[bytes], tuple[int, bytes]],
) -> Iterator[tuple[str, Sequence[tuple[Mapping[str, str], bytes]]]]:
    """Serve a tax service on this machine; yield its address and what it was asked."""
    asked: list[tuple[Mapping[str, str], bytes]] = []
    handler = type("_Handler", (_Answering,), {"answer": staticmethod(answer), "asked": asked})
    port = free_port()
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/taxes", asked
        finally:
            server.shutdown()
            thread.join()


def told(answer: object) -> Callable[[bytes], tuple[int, bytes]]:
    return lambda _: (200, json.dumps(answer).encode())

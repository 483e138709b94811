"""One HTTP request whose answer comes line by line, so that no server can hang the caller."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LOOK_EVERY = 0.1  # seconds between two looks whether the work was cancelled
THREAD_LEFT = 60.0  # seconds that a thread may outlive the work it was for
LONGEST_LINE = 4 * 2**20  # bytes

Wait = Callable[[], None]


@dataclass(frozen=True)
class Limits:
    """Seconds: to connect, to the first line, between two lines, and for everything."""

    connect: float = 10.0
    first: float = 300.0
    between: float = 60.0
    total: float = 1200.0


class EndpointError(ValueError):
    """What went wrong at the endpoint. again: whether asking once more may help."""

    def __init__(self, message: str, status: int = 0, again: bool = False) -> None:
        super().__init__(message)
        self.status, self.again = status, again


@dataclass(frozen=True)
class Request:
    """What is sent: a method, an address, a key or none, and values as JSON or none."""

    method: str
    url: str
    key: str = ""
    values: Any = None


@contextlib.contextmanager
def open_lines(request: Request, limits: Limits, wait: Wait) -> Iterator[Iterator[bytes]]:
    """The lines of the answer. `wait` is called before each, and ten times a second while none
    comes, and ends the work by raising. Redirects are not followed, proxies not used.

    Raises EndpointError for everything else that ends it.
    """
    worker = _Worker(request, limits)
    worker.thread.start()
    try:
        yield worker.lines(wait)
    finally:
        worker.close()


class _Worker:
    """The connection in a thread of its own, so that whoever waits can go at any time."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits = request, limits
        self.queue: queue.Queue[bytes | None | Exception] = queue.Queue(maxsize=256)
        self.connection: http.client.HTTPConnection | None = None
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="skyreels words", daemon=True)

    def lines(self, wait: Wait) -> Iterator[bytes]:
        start = last = time.monotonic()
        allowed, url = self.limits.first, self.request.url
        while True:
            wait()
            item: bytes | None | Exception = b""
            with contextlib.suppress(queue.Empty):
                item = self.queue.get(timeout=LOOK_EVERY)
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            now = time.monotonic()
            if now - start > self.limits.total:
                raise EndpointError(
                    f"{url} did not come to an end in {self.limits.total:g} seconds"
                )
            if item:
                last, allowed = now, self.limits.between
                yield item
            elif now - last > allowed:
                raise EndpointError(f"{url} did not go on for {allowed:g} seconds")

    def close(self) -> None:
        """End the thread, which may be in the middle of waiting for the server."""
        self.closed = True
        open_socket = getattr(self.connection, "sock", None)
        if open_socket is not None:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._talk()
        except EndpointError as error:
            self._put(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._put(self._explain(error))
        finally:
            if self.connection is not None:
                self.connection.close()
        self._put(None)

    def _talk(self) -> None:
        self.connection = connection = _connect(self.request.url, self.limits.connect)
        connection.connect()
        # From here on whoever waits counts; this only ends threads whose server is gone.
        connection.sock.settimeout(self.limits.total + THREAD_LEFT)
        address = urlsplit(self.request.url)
        headers = {"Accept": "application/json, text/event-stream"}
        if self.request.key:
            headers["Authorization"] = f"Bearer {self.request.key}"
        body = None
        if self.request.values is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(self.request.values).encode()
        path = address.path + (f"?{address.query}" if address.query else "")
        connection.request(self.request.method, path or "/", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _refused(self.request.url, response)
        while not self.closed:
            line = response.readline(LONGEST_LINE)
            if not line:
                return
            if len(line) >= LONGEST_LINE:
                raise EndpointError(f"{self.request.url} sent a line of over 4 MB")
            self._put(line)

    def _put(self, item: bytes | None | Exception) -> None:
        while not self.closed:
            with contextlib.suppress(queue.Full):
                self.queue.put(item, timeout=LOOK_EVERY)
                return

    def _explain(self, error: Exception) -> EndpointError:
        url = self.request.url
        if isinstance(error, (ConnectionRefusedError, socket.gaierror)):
            return EndpointError(
                f"nothing answers at {url} ({error}); start the server, or correct its address",
                again=isinstance(error, ConnectionRefusedError),
            )
        if isinstance(error, TimeoutError):
            return EndpointError(f"{url} did not answer in time", again=True)
        return EndpointError(f"{url} broke off: {type(error).__name__}: {error}", again=True)


def _connect(url: str, timeout: float) -> http.client.HTTPConnection:
    address = urlsplit(url)
    host, port = address.hostname or "", address.port
    if address.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _refused(url: str, response: http.client.HTTPResponse) -> EndpointError:
    """What a status other than 200 says, with the server's own words."""
    status = response.status
    said = " ".join(response.read(2000).decode("utf-8", "replace").split())[:300]
    hints = {
        401: "; the key is missing or wrong",
        403: "; the key does not allow it",
        404: "; the address often ends in /v1, and the model must be one that the server has",
        413: "; the pictures are too many or too large for it",
    }
    hint = "; redirects are not followed" if 300 <= status < 400 else hints.get(status, "")
    again = status in (408, 429) or status >= 500
    return EndpointError(
        f"{url} answered {status}{hint}: {said or 'without a word'}", status, again
    )

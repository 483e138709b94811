"""A small WebSocket client (RFC 6455) for following a ComfyUI server; no extensions."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
from urllib.parse import urlsplit

ACCEPT_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FINAL, MASKED = 0x80, 0x80
# Previews are below a megabyte; a length beyond this is not ComfyUI talking.
MAX_MESSAGE_BYTES = 1 << 28


class WebSocketError(ConnectionError):
    """The peer is not a WebSocket server, broke the protocol, or hung up."""


def mask(payload: bytes, key: bytes) -> bytes:
    """XOR `payload` with the repeated 4-byte `key` (RFC 6455, section 5.3)."""
    size = len(payload)
    repeated = (key * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return mixed.to_bytes(size, "big")


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One final frame from client to server, masked with fresh random bytes."""
    size = len(payload)
    if size < 126:
        length = bytes([MASKED | size])
    elif size < 1 << 16:
        length = struct.pack("!BH", MASKED | 126, size)
    else:
        length = struct.pack("!BQ", MASKED | 127, size)
    key = os.urandom(4)
    return bytes([FINAL | opcode]) + length + key + mask(payload, key)


class WebSocket:
    """One connection to `url` (ws:// or wss://), open once it is constructed.

    Raises WebSocketError when the server answers something else, OSError when none answers.
    """

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "wss"
        port = parts.port or (443 if secure else 80)
        self._buffer = bytearray()
        self._message = bytearray()
        self._message_opcode = 0
        self._socket = socket.create_connection((host, port), timeout)
        try:
            if secure:
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self._handshake(parts.netloc.rpartition("@")[2], target)
        except BaseException:
            self._socket.close()
            raise

    def receive(self, timeout: float) -> str | bytes:
        """The next whole message, text or binary; pings are answered on the way.

        Raises TimeoutError after `timeout` silent seconds (nothing is lost, call again) and
        WebSocketError when the connection has ended.
        """
        self._socket.settimeout(timeout)
        while True:
            final, opcode, payload = self._frame()
            if opcode == PING:
                self._socket.sendall(client_frame(PONG, payload))
            elif opcode == CLOSE:
                self._socket.sendall(client_frame(CLOSE, payload[:2]))
                raise WebSocketError("the server closed the websocket")
            elif opcode != PONG:
                message = self._assemble(final, opcode, payload)
                if message is not None:
                    return message

    def send(self, text: str) -> None:
        """Send one text message."""
        self._socket.sendall(client_frame(TEXT, text.encode()))

    def close(self) -> None:
        """Say goodbye if the server still listens, and hang up."""
        try:
            self._socket.sendall(client_frame(CLOSE, struct.pack("!H", 1000)))
        except OSError:
            pass
        self._socket.close()

    def _handshake(self, host: str, target: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._receive_more()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer[:] = rest
        status, *lines = head.decode("latin-1").split("\r\n")
        if status.split(" ")[1:2] != ["101"]:
            raise WebSocketError(f"no websocket there: the server answered {status!r}")
        headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
        digest = hashlib.sha1((key + ACCEPT_KEY).encode(), usedforsecurity=False).digest()
        if headers.get("sec-websocket-accept") != base64.b64encode(digest).decode():
            raise WebSocketError("the server did not prove that it speaks websocket")

    def _frame(self) -> tuple[bool, int, bytes]:
        # Nothing leaves the buffer before the frame is whole: a timeout may fall anywhere.
        self._need(2)
        first, second = self._buffer[0], self._buffer[1]
        start, size = 2, second & 0x7F
        if size >= 126:
            start = 4 if size == 126 else 10
            self._need(start)
            size = int.from_bytes(self._buffer[2:start], "big")
        if second & MASKED or size > MAX_MESSAGE_BYTES:
            raise WebSocketError(f"not a server's frame: first bytes {first:#04x} {second:#04x}")
        self._need(start + size)
        payload = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        return bool(first & FINAL), first & 0x0F, payload

    def _assemble(self, final: bool, opcode: int, payload: bytes) -> str | bytes | None:
        starts = opcode in (TEXT, BINARY)
        # A new message must not begin inside another, nor a continuation outside of one.
        if opcode > BINARY or starts == bool(self._message_opcode):
            raise WebSocketError(f"frame of type {opcode} out of place")
        self._message_opcode = opcode or self._message_opcode
        self._message += payload
        if len(self._message) > MAX_MESSAGE_BYTES:
            raise WebSocketError("message too long")
        if not final:
            return None
        whole, kind = bytes(self._message), self._message_opcode
        self._message.clear()
        self._message_opcode = 0
        return whole.decode() if kind == TEXT else whole

    def _need(self, count: int) -> None:
        while len(self._buffer) < count:
            self._receive_more()

    def _receive_more(self) -> None:
        chunk = self._socket.recv(1 << 16)
        if not chunk:
            raise WebSocketError("the server hung up")
        self._buffer += chunk

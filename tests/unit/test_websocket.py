"""The websocket client against frames written by hand, on this machine's loopback."""

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
import time

import pytest

from devtools.websocket import BINARY, CLOSE, PING, PONG, TEXT, WebSocket, WebSocketError, mask


def server_frame(opcode, payload, final=True):
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = struct.pack("!BH", 126, size)
    else:
        length = struct.pack("!BQ", 127, size)
    return bytes([(0x80 if final else 0) | opcode]) + length + payload


def read_client_frame(connection):
    """(opcode, payload) of one masked frame, unmasked byte by byte as the RFC's text says."""
    first, second = connection.recv(2, socket.MSG_WAITALL)
    assert first & 0x80 and second & 0x80
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(connection.recv(2 if size == 126 else 8, socket.MSG_WAITALL), "big")
    key = connection.recv(4, socket.MSG_WAITALL)
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    return first & 0x0F, bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@contextlib.contextmanager
def websocket_server(talk, accept=True):
    """A server for one connection, which does the handshake and then calls `talk(connection)`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", request).group(1)
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            answer = base64.b64encode(digest if accept else digest[::-1])
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nsec-websocket-accept: " + answer + b"\r\n\r\n"
            )
            talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=1"
    finally:
        thread.join(5)
        listener.close()
        assert not thread.is_alive()


class TestWebSocket:
    def test_the_rfc_example_of_masking(self):
        assert mask(b"Hello", bytes.fromhex("37fa213d")) == bytes.fromhex("7f9f4d5158")
        assert mask(b"", b"abcd") == b""

    @pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536, 300_000])
    def test_messages_of_every_length_class_both_ways(self, size):
        text = "é" * (size // 2) + "x" * (size % 2)

        def echo(connection):
            opcode, payload = read_client_frame(connection)
            connection.sendall(server_frame(opcode, payload))
            connection.sendall(server_frame(BINARY, payload))

        with websocket_server(echo) as url:
            client = WebSocket(url)
            client.send(text)
            assert client.receive(5) == text
            assert client.receive(5) == text.encode()
            client.close()

    def test_fragments_with_a_ping_between_and_a_timeout_inside_a_frame(self):
        heard = []

        def talk(connection):
            connection.sendall(server_frame(TEXT, b"one ", final=False))
            connection.sendall(server_frame(PING, b"there?"))
            heard.append(read_client_frame(connection))
            last = server_frame(0, b"two")
            connection.sendall(last[:3])
            time.sleep(0.3)
            connection.sendall(last[3:])
            connection.sendall(server_frame(CLOSE, struct.pack("!H", 1000)))
            heard.append(read_client_frame(connection))

        with websocket_server(talk) as url:
            client = WebSocket(url)
            with pytest.raises(TimeoutError):
                client.receive(0.1)
            assert client.receive(5) == "one two"
            with pytest.raises(WebSocketError, match="closed"):
                client.receive(5)
            client.close()
        assert heard == [(PONG, b"there?"), (CLOSE, struct.pack("!H", 1000))]

    @pytest.mark.parametrize(
        "frame",
        [
            server_frame(0, b"continues nothing"),
            server_frame(TEXT, b"a", final=False) + server_frame(TEXT, b"b"),
            b"\x81\x81abcde",
            b"\x82\x7f" + b"\x7f" * 8,
            b"",
        ],
        ids=["continuation", "interleaved", "masked", "huge", "hangup"],
    )
    def test_broken_peers(self, frame):
        with websocket_server(lambda connection: connection.sendall(frame)) as url:
            client = WebSocket(url)
            with pytest.raises(WebSocketError):
                client.receive(5)
            client.close()

    def test_a_wrong_accept_key_is_refused(self):
        with websocket_server(lambda connection: None, accept=False) as url:
            with pytest.raises(WebSocketError, match="prove"):
                WebSocket(url)

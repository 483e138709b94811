"""Messages between a run and its worker processes: numbers and words as JSON, tensors beside them.

A pair of connected sockets, which no other process can reach; nothing listens. No pickle.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

Message = dict[str, Any]
SIZES = struct.Struct("<QQ")  # of the JSON and of the tensors


class Channel:
    """One end of a pair; messages may be sent by several threads, and received by one."""

    def __init__(self, end: socket.socket) -> None:
        self.end, self.lock = end, threading.Lock()

    def send(self, message: Message, tensors: Mapping[str, Tensor] | None = None) -> None:
        """OSError where the other end is closed."""
        head = json.dumps(message).encode()
        # Copies: the format has no place for tensors that share memory.
        plain = {name: part.detach().cpu().clone() for name, part in (tensors or {}).items()}
        contiguous = {name: part.contiguous() for name, part in plain.items()}
        body = safetensors.torch.save(contiguous) if contiguous else b""
        with self.lock:
            self.end.sendall(SIZES.pack(len(head), len(body)) + head)
            self.end.sendall(body)

    def receive(self) -> tuple[Message, dict[str, Tensor]]:
        """Waits for the next message; EOFError where the other end is closed."""
        head, body = SIZES.unpack(self._read(SIZES.size))
        message = json.loads(self._read(head))
        return message, safetensors.torch.load(self._read(body)) if body else {}

    def close(self) -> None:
        self.end.close()

    def _read(self, size: int) -> bytes:
        content = bytearray(size)
        view, read = memoryview(content), 0
        while read < size:
            try:
                count = self.end.recv_into(view[read:])
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError("the other end is closed")
            read += count
        return bytes(content)

"""A server that speaks OpenAI's chat protocol as an engine: vLLM, Ollama, LM Studio and similar."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch.nn import functional

from ..rules import refusal
from .engine import Message, OnToken, Sampling
from .http_lines import EndpointError, Limits, Request, Wait, open_lines
from .vision import CLIP_LEAST, CLIP_MOST, LEAST, MOST, fit_size

PAUSES = (1.0, 3.0)  # seconds before asking once more, where that may help
LONGEST_ANSWER = 64  # characters for each token that was allowed
LONGEST_LIST = 2**24  # bytes of the names of models
SHORTEST_KEY = 8  # characters; shorter ones, such as "ollama", are no secrets
JPEG_QUALITY = 92

# Where people put passwords and keys in an address.
_SECRETS = re.compile(r"(?<=//)[^/]*(?=@)|(?<=[?#]).+", re.DOTALL)


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class Endpoint:
    """Where the server is. clips_as_video: frames of a clip as one video, as vLLM takes them, else
    each as a picture.
    """

    url: str
    key: str = field(default="", repr=False)
    model: str = ""
    sees_pictures: bool = True
    clips_as_video: bool = False
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.url)
            fine = address.scheme in ("http", "https") and bool(address.hostname)
            fine = fine and address.port != 0 and "@" not in address.netloc
            fine = fine and not re.search(r"[?#\s]", self.url)
        except ValueError:
            fine = False
        if not fine:
            rule = "an address such as http://localhost:8000/v1, without spaces, ?, # or a password"
            raise refusal("the endpoint's address", _SECRETS.sub("\u2026", self.url), rule)
        if not (self.key.isascii() and self.key.isprintable()):
            # It is not shown, here or anywhere.
            raise ValueError(
                "the endpoint's key has a line break or a letter that no key has; it must be the "
                "key alone, on one line: copy it once more"
            )


class EndpointEngine:
    """A server's model. `wait` is called ten times a second while nothing comes."""

    constrains_json = True

    def __init__(self, endpoint: Endpoint, wait: Wait = _do_nothing) -> None:
        self.endpoint, self._wait = endpoint, wait
        self.sees_pictures = endpoint.sees_pictures
        base = endpoint.url.rstrip("/").removesuffix("/chat/completions")
        self._base = base
        # Without its address: names get into texts that are saved with workflows.
        self.name = f"{endpoint.model or 'the model'} at the endpoint"

    def generate(self, messages: Sequence[Message], sampling: Sampling, on_token: OnToken) -> str:
        try:
            return self._answer(messages, sampling, on_token)
        except EndpointError as error:
            key, said = self.endpoint.key, str(error)
            if len(key) < SHORTEST_KEY or key not in said:
                raise
            # Some servers repeat the key that they refuse, and errors are logged and saved.
            raise EndpointError(said.replace(key, "(the key)"), error.status) from None

    def _answer(self, messages: Sequence[Message], sampling: Sampling, on_token: OnToken) -> str:
        values = {
            "model": self.endpoint.model or self._first_model(),
            "messages": [self._write_message(message) for message in messages],
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        try:
            return self._ask({**values, **_extras(sampling)}, sampling, on_token)
        except EndpointError as error:
            # Servers know different sets of settings, and refuse what they do not know.
            if error.status not in (400, 422):
                raise
        return self._ask(values, sampling, on_token)

    def _ask(self, values: dict[str, Any], sampling: Sampling, on_token: OnToken) -> str:
        """Once more after a pause, where that may help and nothing was heard yet."""
        heard = False

        def take(piece: str) -> None:
            nonlocal heard
            heard = True
            on_token(piece)

        for pause in PAUSES:
            try:
                return self._hear(values, sampling, take)
            except EndpointError as error:
                if heard or not error.again:
                    raise
            self._pause(pause)
        return self._hear(values, sampling, take)

    def _hear(self, values: dict[str, Any], sampling: Sampling, on_token: OnToken) -> str:
        url = f"{self._base}/chat/completions"
        request = Request("POST", url, self.endpoint.key, values)
        text, most = "", LONGEST_ANSWER * sampling.max_tokens
        with open_lines(request, self.endpoint.limits, self._wait) as lines:
            for piece in _read_pieces(lines, url):
                text += piece
                on_token(piece)
                ends = [text.find(stop) for stop in sampling.stop if stop in text]
                if ends:
                    return text[: min(ends)]
                if len(text) > most:
                    # It does not keep to the limit. What it said so far may be an answer.
                    return text[:most]
        return text

    def _first_model(self) -> str:
        """The first that the server lists; ValueError where it lists none."""
        url = f"{self._base}/models"
        with open_lines(
            Request("GET", url, self.endpoint.key), self.endpoint.limits, self._wait
        ) as lines:
            text = b""
            for line in lines:
                if len(text) + len(line) > LONGEST_LIST:
                    break
                text += line
        try:
            name = json.loads(text)["data"][0]["id"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise EndpointError(f"{url} lists no model; name one") from None
        return str(name)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._wait()
            time.sleep(0.1)

    def _write_message(self, message: Message) -> dict[str, Any]:
        if message.pictures is None:
            return {"role": message.role, "content": message.text}
        is_clip = message.fps is not None
        pictures = [_encode(picture, is_clip) for picture in message.pictures]
        if is_clip and self.endpoint.clips_as_video:
            video = {"url": f"data:video/jpeg;base64,{','.join(pictures)}"}
            parts: list[dict[str, Any]] = [{"type": "video_url", "video_url": video}]
        else:
            addresses = [f"data:image/jpeg;base64,{picture}" for picture in pictures]
            parts = [{"type": "image_url", "image_url": {"url": url}} for url in addresses]
        parts.append({"type": "text", "text": message.text})
        return {"role": message.role, "content": parts}


def _extras(sampling: Sampling) -> dict[str, Any]:
    """Settings that not every server knows."""
    values: dict[str, Any] = {"seed": sampling.seed % 2**31, "top_p": sampling.top_p}
    if sampling.top_k:
        values["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1:
        values["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        values["stop"] = list(sampling.stop)
    if sampling.schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.schema), "strict": True}
        values["response_format"] = {"type": "json_schema", "json_schema": schema}
    return values


def _read_pieces(lines: Iterator[bytes], url: str) -> Iterator[str]:
    """The pieces of an answer, from events or from one JSON text.

    Raises EndpointError where it is neither, an error, or ends before its end.
    """
    whole = b""
    for line in lines:
        if not line.startswith(b"data:"):
            if line.strip() and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                whole += line
            if len(whole) > 2**24:
                break
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        choice = _first_choice(data, url)
        piece = (choice.get("delta") or {}).get("content")
        if isinstance(piece, str) and piece:
            yield piece
        if choice.get("finish_reason"):
            return
    if not whole:
        raise EndpointError(f"{url} broke off before the answer was complete", again=True)
    piece = (_first_choice(whole, url).get("message") or {}).get("content")
    if not isinstance(piece, str):
        raise EndpointError(f"{url} answered without an answer: {_shorten(whole)}")
    yield piece


def _first_choice(data: bytes, url: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
        if values.get("error"):
            said = values["error"]
            said = said.get("message", said) if isinstance(said, dict) else said
            raise EndpointError(f"{url} answered with an error: {_shorten(str(said).encode())}")
        choices = values["choices"]
        choice = choices[0] if choices else {}
        known = isinstance(choice, dict)
        known = known and all(isinstance(choice.get(k) or {}, dict) for k in ("delta", "message"))
    except EndpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise EndpointError(
            f"{url} answered with something other than OpenAI's protocol: {_shorten(data)}"
        )
    found: dict[str, Any] = choice
    return found


def _shorten(data: bytes) -> str:
    return " ".join(data[:600].decode("utf-8", "replace").split())[:200]


def _encode(picture: Tensor, is_clip: bool) -> str:
    """A picture (H, W, 3) as a JPEG in base64, no larger than models look at."""
    from PIL import Image

    floats = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()
    least, most = (CLIP_LEAST, CLIP_MOST) if is_clip else (LEAST, MOST)
    height, width = fit_size(picture.shape[0], picture.shape[1], 1, least, most)
    images = floats.movedim(-1, 0)[None]  # (1, 3, H, W)
    if images.shape[2:] != (height, width):
        images = functional.interpolate(images, (height, width), mode="bicubic", antialias=True)
    bytes_ = (images[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    file = io.BytesIO()
    Image.fromarray(bytes_.numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()

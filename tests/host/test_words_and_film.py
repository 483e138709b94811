"""A language model and a film in one graph: who wrote makes room, and the film is as without it."""

import dataclasses
import functools
import sys

import graphs
import pytest
import torch
from card.install import installed, use_dynamic

from devtools import inprocess

node = graphs.node
FILM = {"frames": 5, "window": 5, "overlap": 1, "steps": 2, "width": 16, "height": 16}


def module(end):
    return next(m for name, m in sys.modules.items() if "/" in name and name.endswith(end))


@pytest.fixture
def engines(monkeypatch, host):
    """The language models that are loaded, which write 12 tokens at most."""
    nodes, made = module("nodes.words"), []
    short = dataclasses.replace(nodes.Enhancer().sampling, max_tokens=12)
    monkeypatch.setattr(nodes, "Enhancer", functools.partial(nodes.Enhancer, sampling=short))
    load = nodes.load_engine

    def load_and_keep(*given, **named):
        engine, report = load(*given, **named)
        made.append(engine)
        return engine, report

    monkeypatch.setattr(nodes, "load_engine", load_and_keep)
    return made


def told_film(words):
    """A film of what a language model writes."""
    prompt = graphs.film(**FILM)
    prompt["lm"] = node("SkyReelsV2LanguageModelLoader", language_model_name=words)
    prompt["say"] = node("SkyReelsV2PromptEnhancer", engine=["lm", 0], prompt="a circle", seed=3,
                         language="english", temperature=0.0)  # fmt: skip
    prompt["4"]["inputs"]["prompt"] = ["say", 0]
    return prompt


def typed_film(text):
    prompt = graphs.film(**FILM)
    prompt["4"]["inputs"]["prompt"] = text
    return prompt


def test_a_film_after_a_language_model_is_the_one_without_it(look, small_words, engines):
    text, frames = look(told_film(small_words), text=["say", 0], frames=["7", 0])
    assert text.strip()
    assert torch.equal(look(typed_film(text), frames=["7", 0])[0], frames)


def test_on_a_card_the_language_model_leaves_for_the_film(
    host, look, small_words, engines, monkeypatch
):
    """With room for a part of one model at a time."""
    import comfy.model_management as management

    if not hasattr(management, "STREAM_AIMDO_CAST_BUFFERS"):
        pytest.skip("this ComfyUI has another dynamic patcher")
    inprocess.unload_models()
    sizes = []

    def look_at_the_card(event, data):
        states = data.get("nodes", {}) if event == "progress_state" else {}
        for name in ("say", "6"):
            if states.get(name, {}).get("state") == "running":
                sizes.append((name, engines[-1].patcher.loaded_size()))

    with torch.inference_mode(), installed(monkeypatch) as card:
        use_dynamic(monkeypatch)
        card.vram.budget = 300_000
        text, frames = look(
            told_film(small_words), look_at_the_card, text=["say", 0], frames=["7", 0]
        )
        assert engines[-1].patcher.is_dynamic() and not card.vram.in_use()
        assert 0 < card.vram.most_used <= 300_000
        inprocess.unload_models()
        assert torch.equal(look(typed_film(text), frames=["7", 0])[0], frames)
    writing, filming = ([size for name, size in sizes if name == one] for one in ("say", "6"))
    assert max(writing) > 2 * filming[-1]

"""What a forward needs with the host's layers and attention, and that what is dropped is freed."""

import gc
import sys
import weakref

import graphs
import pytest
import torch
from tiny_words import write_model

from devtools.live_bytes import allocated_peak
from skyreels_model.model.memory import forward_bytes
from skyreels_model.words import Message, Sampling

IMAGE_ENCODER = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize(("batch", "size"), [(1, (9, 40, 40)), (2, (5, 32, 32))])
def test_the_hosts_layers_hold_nothing_more(look, name, dtype, batch, size):
    """With PyTorch's attention: what a host takes on a CPU makes more."""
    prompt = graphs.film()
    prompt["1"]["inputs"] |= {"weight_dtype": name, "attention": "pytorch"}
    (model,) = look(prompt, model=["1", 0])
    transformer = model.model.diffusion_model
    x, t = torch.randn(batch, 16, *size, dtype=dtype), torch.rand(batch, size[0]) * 1000
    context = torch.randn(batch, 512, 64, dtype=dtype)
    with torch.inference_mode():
        needed = allocated_peak(lambda: transformer(x, t, context))
    estimate = forward_bytes(transformer.config, batch, *size, dtype.itemsize)
    assert abs(estimate / needed - 1) < 0.1


def test_what_nothing_holds_any_more_is_freed_at_once(look, tmp_path):
    """Without a collection of cycles: a new model would wait beside what is gone, and the host's
    walk over its models ends in an error where one of them dies meanwhile."""
    prompt = graphs.film(frames=5, window=5, overlap=1, steps=2)
    prompt["20"] = graphs.node("SkyReelsV2ImageEncoderLoader", image_encoder_name=IMAGE_ENCODER)
    prompt["21"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=255)
    prompt["22"] = graphs.node(
        "CLIPVisionEncode", clip_vision=["20", 0], image=["21", 0], crop="none"
    )
    cache = {"mode": "automatic", "threshold": 0.15, "start": 0.1, "end": 0.9}
    prompt["23"] = graphs.node("SkyReelsV2TeaCache", model=["1", 0], **cache)
    prompt["6"]["inputs"]["model"] = ["23", 0]
    links = {"model": ["23", 0], "clip": ["2", 0], "vae": ["3", 0], "vision": ["20", 0]}
    kept = look(prompt, **links, film=["7", 0], seen=["22", 0])[:4]
    loader = next(m for n, m in sys.modules.items() if n.endswith("host.words.language_model"))
    kept.append(loader.load_engine(write_model(tmp_path / "qwen2", "qwen2"))[0])
    kept[-1].generate([Message("user", "A cat")], Sampling(max_tokens=2), lambda piece: None)
    patchers = [getattr(thing, "patcher", thing) for thing in kept]
    gc.collect()  # the host's runs end in cycles
    gone = [weakref.ref(patcher.model) for patcher in patchers]
    gc.disable()
    try:
        del kept, patchers
        left = [ref() for ref in gone]
    finally:
        gc.enable()
    assert left == [None] * 5

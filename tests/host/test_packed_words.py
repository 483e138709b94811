"""Language models whose weights lie in few bits: packed on loading, and packed in their files."""

import json
import sys

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_words import write_model

from devtools import inprocess
from skyreels_model.files.packed import pack_in_four_bits, pack_in_fp8
from skyreels_model.words import Message, Sampling
from skyreels_model.words.network import open_model
from skyreels_model.words.qwen import QwenEngine

CPU, FP8 = torch.device("cpu"), torch.float8_e4m3fn
LIKELIEST = Sampling(max_tokens=12, temperature=0)
SAID = {
    "qwen2": [Message("user", "A cat jumps.")],
    "qwen2_5_vl": [Message("user", "What?", torch.linspace(0, 1, 56**2 * 3).view(1, 56, 56, 3))],
}
PACKED = "layers.", "_proj.weight"  # what is packed of names


def hear(_piece):
    pass


@pytest.fixture
def load(host):
    """The pack's loader of engines."""
    names = (n for n in sys.modules if "/" in n and n.endswith("host.words.language_model"))
    return sys.modules[next(names)].load_engine


@pytest.fixture
def written(tmp_path):
    """`written(kind)`: a folder's file, and what its engine says without a host."""

    def write(kind):
        return write_model(tmp_path / kind, kind)

    return write


def say(file, kind):
    return QwenEngine(open_model(file), kind).generate(SAID[kind], LIKELIEST, hear)


def is_packed(key):
    return PACKED[0] in key and key.endswith(PACKED[1]) and ".visual." not in key


def run_wherever(engine, kind, wanted):
    """It says so whole, unloaded in between, and with a part of its weights streamed."""
    # Quantised models of others may have been made outside of inference mode, and go there.
    inprocess.unload_models()
    with torch.inference_mode():
        assert engine.generate(SAID[kind], LIKELIEST, hear) == wanted
        inprocess.unload_models()
        engine._place = lambda _needed: CPU
        memory = int(engine.patcher.model_size() * 0.5)
        engine.patcher.patch_model(device_to=CPU, lowvram_model_memory=memory)
        assert engine.patcher.model.model_lowvram and engine.patcher.loaded_size() <= memory
        assert engine.generate(SAID[kind], LIKELIEST, hear) == wanted
        engine.patcher.unpatch_model(CPU)


@pytest.mark.parametrize(
    ("kind", "weight_format", "pack"),
    [
        ("qwen2", "fp8", pack_in_fp8),
        ("qwen2", "4 bit", pack_in_four_bits),
        ("qwen2_5_vl", "4 bit", pack_in_four_bits),
    ],
)
def test_packed_on_loading_it_says_what_its_numbers_say(load, written, kind, weight_format, pack):
    if weight_format == "4 bit":
        pytest.importorskip("bitsandbytes")
    file = written(kind)
    with torch.inference_mode():  # as for nodes
        engine, report = load(file, weight_format=weight_format)
        whole, _ = load(file)
    assert report.endswith(f"packed in {weight_format}")
    # What sees is not packed.
    share = 0.9 if kind == "qwen2_5_vl" else 0.7
    assert engine.patcher.model_size() < share * whole.patcher.model_size()
    meant = {
        key: pack(value).dequantize(torch.float32) if is_packed(key) else value
        for key, value in load_file(file).items()
    }
    save_file(meant, file)
    run_wherever(engine, kind, say(file, kind))
    again = engine.patcher.cached_patcher_init
    with torch.inference_mode():
        assert again[0](*again[1]).model_size() == engine.patcher.model_size()


def by_bitsandbytes(value):
    functional = pytest.importorskip("bitsandbytes").functional
    data, state = functional.quantize_4bit(
        value, blocksize=64, quant_type="nf4", compress_statistics=True
    )
    beside = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {"weight": data, **beside}, functional.dequantize_4bit(data, state)


def by_bitsandbytes_in_int8(value):
    largest = value.abs().amax(1)
    data = (value / largest[:, None] * 127).round().to(torch.int8)
    return {"weight": data, "SCB": largest}, data.float() * (largest / 127)[:, None]


def by_blocks_of_fp8(value):
    scale = value.abs().max() / 448
    data = (value / scale).to(FP8)
    return {"weight": data, "weight_scale_inv": scale.reshape(1, 1)}, data.float() * scale


def by_rows_of_fp8(value):
    scale = value.abs().amax(1, keepdim=True) / 448
    data = (value / scale).to(FP8)
    return {"weight": data, "weight_scale": scale}, data.float() * scale


FOLDERS = {
    "bitsandbytes": (by_bitsandbytes, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "int8": (by_bitsandbytes_in_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "fp8": (by_blocks_of_fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "rows": (by_rows_of_fp8, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
}


def test_the_host_is_told_what_unpacking_takes(load, written, monkeypatch):
    import comfy.model_management as management

    asked, bring = [], management.load_models_gpu
    monkeypatch.setattr(
        management,
        "load_models_gpu",
        lambda models, memory_required=0: asked.append(memory_required) or bring(models),
    )
    pytest.importorskip("bitsandbytes")
    file = written("qwen2")
    with torch.inference_mode():
        for weight_format in ("as stored", "4 bit"):
            load(file, weight_format=weight_format)[0].generate(SAID["qwen2"], LIKELIEST, hear)
    plain, packed = asked
    assert packed - plain == 12 * 64 * 96  # of the largest layer's numbers


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_packed_stays_so(load, written, name):
    pack, described = FOLDERS[name]
    file = written("qwen2")
    stored, meant = {}, {}
    for key, value in load_file(file).items():
        stored[key] = meant[key] = value
        if is_packed(key):
            parts, meant[key] = pack(value)
            del stored[key]
            layer = key.removesuffix("weight")
            stored |= {layer + leaf: part.contiguous() for leaf, part in parts.items()}
    save_file(meant, file)
    wanted = say(file, "qwen2")
    save_file(stored, file)
    config = file.parent / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": described})
    )
    with torch.inference_mode():
        engine, report = load(file)
    assert "quantised 14 of" in report and "0 missing, 0 unexpected" in report
    layer = engine.network.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8 and layer.weight.nbytes < 96 * 64 * 1.3
    run_wherever(engine, "qwen2", wanted)


def test_the_hosts_four_bits_stay_so(load, written):
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    if "nvfp4" not in QUANT_ALGOS:
        pytest.skip("this ComfyUI does not know nvfp4")
    file, ids = written("qwen2"), torch.arange(7)[None] + 40
    exact = open_model(file).network(input_ids=ids).logits
    stored, meant = {}, {}
    for key, value in load_file(file).items():
        stored[key] = meant[key] = value
        if is_packed(key):
            layout = QUANT_ALGOS["nvfp4"]["comfy_tensor_layout"]
            tensor = QuantizedTensor.from_float(value.contiguous(), layout)
            meant[key] = tensor.dequantize()
            del stored[key]
            stored |= {name: part.contiguous() for name, part in tensor.state_dict(key).items()}
            settings = torch.tensor(list(b'{"format": "nvfp4"}')).byte()
            stored[key.replace("weight", "comfy_quant")] = settings
    save_file(meant, file)
    wanted = open_model(file).network(input_ids=ids).logits
    save_file(stored, file)
    with torch.inference_mode():
        engine, report = load(file)
        engine._place(0)
        away = (engine.network(input_ids=ids).logits - wanted).norm()
    # The host computes with their numbers in bfloat16.
    assert away < 0.1 * (exact - wanted).norm()
    assert "14 of" in report and "scaled nvfp4" in report
    assert type(engine.network.model.layers[0].mlp.up_proj.weight).__name__ == "QuantizedTensor"


def test_without_bitsandbytes_the_loader_says_how_to_get_it(run_prompt, small_words, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    loader = graphs.node(
        "SkyReelsV2LanguageModelLoader", language_model_name=small_words, weight_format="4 bit"
    )
    result = run_prompt({"1": loader, "2": graphs.node("PreviewAny", source=["1", 1])})
    text = result.error["exception_message"]
    assert "weights in 4 bits need the package bitsandbytes" in text and "or take fp8" in text

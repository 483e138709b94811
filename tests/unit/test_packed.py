"""Weights in blocks with a scale each: 4 bits by bitsandbytes, 8 bits, and fp8 as Qwen has it."""

import sys

import pytest
import torch
from tiny_words import write_model

from skyreels_model.files import packed
from skyreels_model.files.packed import (
    PackedWeight,
    gather_packed,
    pack_in_four_bits,
    pack_in_fp8,
    pack_scaled,
)
from skyreels_model.files.quantized import ScaledWeight
from skyreels_model.words import Message, Sampling
from skyreels_model.words.families import read_config
from skyreels_model.words.network import open_model
from skyreels_model.words.qwen import QwenEngine

FP8 = torch.float8_e4m3fn
KINDS = [("nf4", False), ("nf4", True), ("fp4", False)]


def save_four_bits(weight, kind, nested):
    """As transformers saves a layer that bitsandbytes has packed, and what it stands for."""
    functional = pytest.importorskip("bitsandbytes").functional
    data, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type=kind, compress_statistics=nested
    )
    beside = {f"a.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    return {"a.weight": data, **beside}, functional.dequantize_4bit(data, state)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nested"), KINDS)
@pytest.mark.parametrize("shape", [(48, 40), (7, 9)])  # of whole blocks and bytes, and not
def test_what_bitsandbytes_saved_is_read_as_it_reads_it(kind, nested, shape):
    saved, meant = save_four_bits(torch.randn(shape).bfloat16(), kind, nested)
    (weight,) = gather_packed(saved).values()
    assert (weight.kind, weight.shape) == (kind, torch.Size(shape))
    data, text = weight.to_bytes()
    again = PackedWeight.from_bytes(data, text)
    assert data.dtype == torch.uint8 and data.ndim == 1
    for one in (weight, again):
        assert torch.equal(one.dequantize(torch.bfloat16), meant)


def test_packing_in_four_bits_is_bitsandbytes_own():
    functional = pytest.importorskip("bitsandbytes").functional
    plain = torch.randn(64, 96)
    weight = pack_in_four_bits(plain)
    data, state = functional.quantize_4bit(plain, blocksize=64, quant_type="nf4")
    assert torch.equal(weight.dequantize(torch.float32), functional.dequantize_4bit(data, state))
    assert weight.to_bytes()[0].nbytes < plain.nbytes / 6
    assert pack_in_four_bits(plain.to(FP8)).shape == plain.shape


def test_eight_bits_of_bitsandbytes_have_a_scale_for_each_row():
    plain = torch.randn(6, 10)
    largest = plain.abs().amax(1)
    data = (plain / largest[:, None] * 127).round().to(torch.int8)
    saved = {"a.weight": data, "a.SCB": largest, "a.weight_format": torch.tensor(0).byte()}
    (weight,) = gather_packed(saved).values()
    meant = data.float() * largest[:, None] / 127
    torch.testing.assert_close(weight.dequantize(torch.float32), meant)
    torch.testing.assert_close(pack_scaled(weight).dequantize(torch.float32), meant)


def test_blocks_of_fp8_have_a_scale_each():
    data = torch.randn(200, 300).to(FP8)
    scale = torch.rand(2, 3) + 0.5
    (weight,) = gather_packed({"a.weight": data, "a.weight_scale_inv": scale}).values()
    meant = data.float()
    for row in range(2):
        for column in range(3):
            rows, columns = (
                slice(128 * row, 128 * row + 128),
                slice(128 * column, 128 * column + 128),
            )
            meant[rows, columns] *= scale[row, column]
    assert weight.kind == "float8_e4m3fn in blocks"
    assert torch.equal(weight.dequantize(torch.float32), meant)
    again = PackedWeight.from_bytes(*weight.to_bytes())
    assert torch.equal(again.dequantize(torch.float32), meant)


@pytest.mark.parametrize("rows", [1, 5])
def test_scaled_weights_are_packed_as_they_are(rows):
    scales = {"weight_scale": torch.rand(rows) + 0.1}
    weight = ScaledWeight(torch.randn(5, 7).to(FP8), {"format": "float8_e4m3fn"}, scales)
    same = pack_scaled(weight).dequantize(torch.float32)
    assert torch.equal(same, weight.dequantize(torch.float32))


@pytest.mark.parametrize("plain", [torch.randn(9, 5).bfloat16(), torch.zeros(3, 4)])
def test_fp8_loses_a_sixteenth_at_most(plain):
    numbers = pack_in_fp8(plain).dequantize(torch.float32)
    least = plain.abs().max().float() / 448 / 64  # below its normal numbers
    assert ((numbers - plain.float()).abs() <= plain.float().abs() / 16 + least).all()


def cut(saved):
    return saved | {"a.weight": saved["a.weight"][:-1]}


def spoil(saved):
    name = next(key for key in saved if "quant_state" in key)
    return saved | {name: torch.tensor(list(b"[1"), dtype=torch.uint8)}


def drop_scales(saved):
    return {key: value for key, value in saved.items() if not key.endswith(".absmax")}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (cut, "a.weight has 767 bytes and 24 scales, which does not fit"),
        (drop_scales, "a.weight has 768 bytes and 0 scales, which does not fit"),
        (spoil, "quant_state.bitsandbytes__nf4 cannot be read"),
        (lambda saved: saved | {"a.weight": torch.zeros(3)}, "a.weight is torch.float32; beside"),
    ],
)
def test_broken_files_are_refused(change, error):
    saved, _ = save_four_bits(torch.randn(32, 48).bfloat16(), "nf4", False)
    with pytest.raises(ValueError, match=error):
        gather_packed(change(saved))


@pytest.mark.parametrize(
    ("saved", "error"),
    [
        ({"a.weight_scale_inv": torch.ones(1, 1)}, "a.weight is nothing; beside its scales"),
        (
            {"a.weight": torch.zeros(200, 8).to(FP8), "a.weight_scale_inv": torch.ones(1, 1)},
            r"scales of shape \(1, 1\) .* must be \(2, 1\)",
        ),
        (
            {"a.weight": torch.zeros(4, 2).to(torch.int8), "a.SCB": torch.ones(2)},
            r"a.SCB has shape \(2,\); it must be \(4,\)",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(saved, error):
    with pytest.raises(ValueError, match=error):
        gather_packed(saved)


def test_without_bitsandbytes_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    text = (
        "need the package bitsandbytes, which is missing; .*pip install bitsandbytes.* or take fp8"
    )
    with pytest.raises(ValueError, match=text):
        pack_in_four_bits(torch.ones(2, 2))
    settings = '"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "qwen2", {settings}}}')
    with pytest.raises(ValueError, match=text):
        read_config(tmp_path, {})


def test_a_bitsandbytes_that_does_not_start_is_said(monkeypatch):
    class Broken:
        def find_spec(self, name, *_more):
            if name.startswith("bitsandbytes"):
                raise RuntimeError("no driver")

    for name in [one for one in sys.modules if one.startswith("bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ValueError, match="is installed, but does not start: no driver"):
        packed.import_bitsandbytes()


def test_a_folder_in_four_bits_answers_as_its_numbers_do(tmp_path):
    """Without a host, where packed weights become plain numbers."""
    from safetensors.torch import load_file, save_file

    file = write_model(tmp_path / "model", "qwen2", dtype=torch.bfloat16)
    plain, saved = load_file(file), {}
    for key, value in plain.items():
        if key.endswith("_proj.weight"):
            parts, plain[key] = save_four_bits(value, "nf4", True)
            parts = {name.replace("a.weight", key): part for name, part in parts.items()}
            saved |= parts
        else:
            saved[key] = value
    said, sampling = [Message("user", "A cat.")], Sampling(12, 0)
    texts = []
    for weights in (plain, saved):
        save_file(weights, file)
        opened = open_model(file)
        texts.append(QwenEngine(opened, "tiny").generate(said, sampling, lambda piece: None))
    assert texts[0] == texts[1] and "14 of 27 nf4" in opened.report

"""GGUF: our reading of blocks against the `gguf` package's, and files by its writer."""

import pathlib
import sys

import pytest
import torch

from devtools.live_bytes import LiveBytes
from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint, gguf_blocks, loading
from skyreels_model.files.gguf_blocks import FORMATS, dequantize
from skyreels_model.model import SkyReelsModel, names
from skyreels_model.text_encoder.tokenizer import Tokenizer
from toy.random_weights import dit_shapes

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

SMALL = ModelConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64)
# Where a block has its 16-bit scales; all other bytes may be anything.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "IQ2_XXS": (0,), "IQ3_S": (0,), "TQ1_0": (52,),
}  # fmt: skip


def random_blocks(name, shape, seed=0, scale=1e-3):
    """Bytes of a weight of `shape` in a format: any bits, but finite scales."""
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    random = np.random.default_rng(seed)
    count = shape[0] * shape[1] // numbers
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for place in SCALES[name]:
        halves = (random.standard_normal((count, 1)) * scale).astype(np.float16)
        blocks[:, place : place + 2] = halves.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def by_package(data, name):
    return torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_are_read_as_the_package_reads_them(name):
    assert FORMATS[name][:2] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    data = random_blocks(name, (8, 512), scale=1.0)
    expected = by_package(data, name)
    shape = torch.Size((8, 512))
    assert torch.equal(dequantize(torch.from_numpy(data), name, shape, torch.float32), expected)
    half = dequantize(torch.from_numpy(data), name, shape, torch.bfloat16)
    assert torch.equal(half, expected.bfloat16())


@pytest.mark.parametrize("name", FORMATS)
def test_large_weights_are_read_in_pieces(name, monkeypatch):
    numbers, size = FORMATS[name][:2]
    shape = torch.Size((8192, 5120))
    data = torch.empty(shape.numel() // numbers, size, dtype=torch.uint8, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        out = dequantize(data, name, shape, torch.bfloat16)
    assert out.shape == shape and live.peak < out.nbytes + 16 * gguf_blocks.PIECE
    small = torch.from_numpy(random_blocks(name, (8, 1280)))
    whole = dequantize(small, name, torch.Size((8, 1280)), torch.float32)
    monkeypatch.setattr(gguf_blocks, "PIECE", 768)
    assert torch.equal(dequantize(small, name, torch.Size((8, 1280)), torch.float32), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_are_finite_where_the_scales_are(name):
    """By the package: a block with a scale that is none has numbers that are none."""
    _, size, where, _ = FORMATS[name]
    blocks = random_blocks(name, (8, 1280))
    assert torch.isfinite(gguf_blocks.scales(torch.from_numpy(blocks), name)).all()
    for first in range(where.start, where.stop, 2):
        broken = blocks.reshape(-1, size).copy()
        broken[3, first : first + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
        found = gguf_blocks.scales(torch.from_numpy(broken), name)
        assert torch.isfinite(found).all(dim=1).sum() == len(broken) - 1
        numbers = gguf.quants.dequantize(broken, gguf.GGMLQuantizationType[name])
        assert np.isnan(numbers[3]).any() and np.isfinite(np.delete(numbers, 3, axis=0)).all()


def write(path, weights, architecture="wan", formats=(), **fields):
    """By the package's writer, as converters of Wan models write: GGML has four dimensions."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in weights.items():
        kind = formats.get(key) if formats else None
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value, raw_dtype=gguf.GGMLQuantizationType[kind])
            continue
        if value.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(value.shape))
            value = value.reshape(value.shape[0], -1)
        if value.dtype == torch.bfloat16:
            raw = value.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(key, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(key, value.contiguous().numpy())
    for key, value in fields.items():
        writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_file(path, name):
    """A model with its blocks' layers in one format; the numbers that the file stands for."""
    torch.manual_seed(0)
    weights, formats, meant = {}, {}, {}
    for number, (key, shape) in enumerate(dit_shapes(SMALL).items()):
        meant[key] = torch.randn(shape) * 0.05
        weights[key] = meant[key]
        if key.startswith("blocks.") and len(shape) == 2:
            weights[key], formats[key] = random_blocks(name, shape, number), name
            meant[key] = by_package(weights[key], name)
        elif len(shape) == 2:
            weights[key] = meant[key].half()
            meant[key] = weights[key].float()
        elif key.endswith("bias"):
            weights[key] = meant[key].bfloat16()
            meant[key] = weights[key].float()
    write(path, weights, formats=formats)
    return meant


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ4_XS", "IQ2_XXS", "IQ3_S", "TQ1_0"])
def test_a_model_by_the_packages_writer(tmp_path, name):
    meant = model_file(tmp_path / "model.gguf", name)
    file = checkpoint.read(tmp_path / "model.gguf")
    weights = names.transformer_tensors(file.tensors, file.metadata)
    assert ModelConfig.from_state_dict(weights) == SMALL
    model = SkyReelsModel(SMALL, device="meta")
    report = loading.load_weights(model, weights)
    assert report.unexpected == [] and report.matched == len(meant)
    for key, value in model.state_dict().items():
        expected = meant[key.replace("modulation.weight", "modulation")]
        # Formats that only the package reads are held in bfloat16.
        limit = 0 if name in FORMATS else 2**-8
        assert (value - expected).abs().max() <= limit * expected.abs().max(), key
    described = loading.quantization(weights)
    assert described == (f"20 of {len(meant)} GGUF {name}" if name in FORMATS else "none")


def test_a_file_larger_than_the_memory(tmp_path, larger_than_memory):
    """With a hole behind its weights, which takes no room on the disk."""
    path = tmp_path / "model.gguf"
    model_file(path, "Q8_0")
    before = checkpoint.read(path).tensors
    with path.open("r+b") as opened:
        opened.truncate(larger_than_memory)
    weights = checkpoint.read(path).tensors
    key = "blocks.0.ffn.0.weight"
    one, other = (w[key].dequantize(torch.float32) for w in (before, weights))
    assert torch.equal(one, other)
    for key in ("patch_embedding.weight", "blocks.0.norm3.bias"):
        assert torch.equal(before[key], weights[key])
        weights[key].zero_()  # as a patch would be written


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    model_file(file, "Q8_0")
    data = file.read_bytes()
    for keep in (4, 40, 3000, len(data) // 2, len(data) - 64):
        file.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=r"model\.gguf \(.*not a whole GGUF file"):
            checkpoint.read(file)
    for other in (b"PK" + data[2:], data[:2]):
        file.write_bytes(other)
        with pytest.raises(ValueError, match=r"no file of tensors .* begins with b'(PKUF|GG)"):
            checkpoint.read(file)
    for name in ("pig", "wan21"):  # as some converters call it: the tensors decide
        meant = {key: torch.zeros(shape) for key, shape in dit_shapes(SMALL).items()}
        write(file, meant, name)
        read = checkpoint.read(file)
        assert names.transformer_tensors(read.tensors, read.metadata).keys() == meant.keys()
    write(file, {"double_blocks.0.x": torch.zeros(2, 2)}, "flux")
    read = checkpoint.read(file)
    with pytest.raises(ValueError, match="architecture 'flux'.*has 'wan'"):
        names.transformer_tensors(read.tensors, read.metadata)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="install the package gguf.*or use a safetensors"):
        checkpoint.read(file)


def test_a_vocabulary_in_the_metadata_is_the_tokenizer_it_was_made_from(tmp_path):
    """As llama.cpp's converter writes it, from a SentencePiece model."""
    import sentencepiece

    data = (pathlib.Path(__file__).parents[1] / "data" / "spiece.model").read_bytes()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    count = range(pieces.vocab_size())
    kinds = [
        2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
        for i in count
    ]
    writer = gguf.GGUFWriter(tmp_path / "umt5.gguf", "t5encoder")
    writer.add_tokenizer_model("t5")
    writer.add_token_list([pieces.id_to_piece(i) for i in count])
    writer.add_token_scores([pieces.get_score(i) for i in count])
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = checkpoint.read(tmp_path / "umt5.gguf")
    made = Tokenizer(read.tensors["spiece_model"].numpy().tobytes())
    for text in ("a red circle", "", "Camera pans; (red:1.2), 50% grey", "  two  spaces "):
        assert made.encode(text) == Tokenizer(data).encode(text)

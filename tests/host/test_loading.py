"""Reading checkpoints in the memory that they need: what the process holds is measured by Linux."""

import contextlib
import ctypes
import gc
import pathlib
import sys

import pytest
import torch
from safetensors.torch import save_file

from devtools import inprocess
from skyreels_model.config import ModelConfig
from toy.random_weights import dit_shapes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CONFIG = ModelConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=24, text_dim=64)
# Of a 14B file of 28 GB in bf16 2 GB; of these smaller files the same share.
SHARE = 2 / 28


@pytest.fixture(scope="module")
def files(models_folder):
    """The same model in every layout; for each file its bytes, and the file removed after it."""
    folder = models_folder / "diffusion_models"
    half = {k: torch.full(v, 0.01, dtype=torch.bfloat16) for k, v in dit_shapes(CONFIG).items()}
    keys = sorted(half)

    @contextlib.contextmanager
    def written(name):
        paths = [folder / name]
        if name == "shards-00001-of-00003.safetensors":
            paths = [folder / f"shards-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
            for i, path in enumerate(paths):
                save_file({k: half[k] for k in keys[i::3]}, path)
        else:
            state = {k: v.float() for k, v in half.items()} if "fp32" in name else half
            save = save_file if name.endswith("safetensors") else torch.save
            save(state, paths[0])
            del state
        try:
            yield sum(path.stat().st_size for path in paths)
        finally:
            for path in paths:
                path.unlink()

    return written


def memory():
    """Bytes of this process: resident now, their peak, and those that are in no file."""
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(fields[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM", "RssAnon")]


def bytes_read():
    return int(dict(line.split(": ") for line in open("/proc/self/io"))["rchar"])


def settle():
    """Give back what is free, and let the peak begin here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize(
    "name",
    ["half.safetensors", "shards-00001-of-00003.safetensors", "half.pth"],
)
def test_loading_takes_no_memory_beside_the_file(files, open_model, name):
    with files(name) as size:
        settle()
        before, _, own_before = memory()
        model, _ = open_model(name, "bf16")
        _, peak, own = memory()
        assert model.model_size() > 0.9 * size
        assert size * 0.5 < peak - before < size * (1 + SHARE)
        # All but the time path, which is widened to fp32, is the file itself.
        assert own - own_before < size * SHARE


@pytest.mark.parametrize("name", ["fp32.safetensors", "fp32.pth"])
def test_conversion_goes_tensor_by_tensor(files, open_model, name):
    """What was converted is let go of: never the file and the weights at once."""
    with files(name) as size:
        settle()
        before = memory()[0]
        model, _ = open_model(name, "bf16")
        peak = memory()[1]
        assert 0.4 * size < model.model_size() < 0.6 * size
        assert peak - before < size * (0.5 + SHARE)


def test_loading_again_reads_nothing(files, open_model, velocity):
    import comfy.model_management

    with files("half.safetensors") as size:
        model, _ = open_model("half.safetensors", "bf16")
        comfy.model_management.load_models_gpu([model])
        addresses = {k: p.data_ptr() for k, p in model.model.named_parameters()}
        inprocess.unload_models()
        settle()
        own, read = memory()[2], bytes_read()
        comfy.model_management.load_models_gpu([model])
        assert bytes_read() - read < size / 1000 and memory()[2] - own < size / 100
        assert addresses == {k: p.data_ptr() for k, p in model.model.named_parameters()}
    inprocess.unload_models()

"""Our VAE in the host: memory that does not grow, tiles, what lack of memory does, core's nodes."""

import contextlib
import importlib
import itertools
import logging
import threading
from types import SimpleNamespace

import graphs
import numpy as np
import pytest
import torch

from devtools.live_bytes import LiveBytes
from toy.training.vae import clips


@pytest.fixture(scope="module")
def vae(look):
    return look({"3": graphs.film()["3"]}, vae=["3", 0])[0]


@pytest.fixture(scope="module")
def part(vae):
    """`part(name)`: a module of nodes/host as the host has loaded it."""
    package = type(vae).__module__.rsplit(".", 2)[0]
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def small(vae, part):
    """A VAE of the same kind with few and random weights."""
    torch.manual_seed(0)
    return type(vae)(part("sockets.vae").VideoVAE(dim=2, num_res_blocks=0), torch.float32, True)


@pytest.fixture(scope="module")
def film(vae):
    """Nine frames (T, 64, 96, 3) of six toy scenes side by side, and their latents, untiled."""
    rng = np.random.default_rng(5)
    rows = [torch.cat([clips(rng, 1, 9)[0] for _ in range(3)], dim=4) for _ in range(2)]
    pixels = (torch.cat(rows, dim=3)[0].movedim(0, -1) + 1) / 2
    return pixels, vae.encode(pixels)


# As a GPU, Python, and PyTorch's allocator for the CPU say that memory does not suffice.
LACKS = {
    "GPU": torch.cuda.OutOfMemoryError("CUDA out of memory"),
    "RAM": MemoryError(),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


@contextlib.contextmanager
def full_device(vae, largest, since=0, lack="GPU"):
    """The decoder and the encoder raise as on a full device where pictures exceed `largest` px."""
    calls = 0

    def raise_(module, args, output):
        nonlocal calls
        calls += 1
        side = max(*args[0].shape[3:], *output.shape[3:])
        if calls > since and side > largest:
            raise LACKS[lack]

    model = vae.first_stage_model
    handles = [half.register_forward_hook(raise_) for half in (model.decoder, model.encoder)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(autouse=True)
def as_in_a_node():
    with torch.inference_mode():
        yield


def rms(a, b):
    return (a - b).square().mean().sqrt().item()


def test_a_film_six_times_as_long_needs_no_more_memory(small, part):
    """Beside the frames themselves, once: 45 and 285 of them."""
    beside = []
    for seconds in (2, 12):
        count = 6 * seconds + 1
        latents, pixels = torch.zeros(1, 16, count, 2, 2), torch.zeros(count * 4 - 6, 16, 16, 3)
        with LiveBytes() as memory:
            frames = part("film.decoding").decode_film(small, {"samples": latents})
            decode = memory.peak - frames.nbytes
            assert len(frames) == count * 4 - 3
            del frames
            memory.reset_peak()
            samples = part("film.encoding").encode_film(small, pixels)["samples"]
            encode = memory.peak - samples.nbytes
            assert samples.shape[2] == count
        beside.append((decode, encode))
    assert beside[0] == beside[1]


def test_tiles_of_both_nodes_are_near_to_untiled(vae, part, film):
    """Measured: 0.018 of 1 in frames, 0.023 in latents (of which 2.3 is the standard deviation)."""
    pixels, latents = film
    decoding, encoding = part("film.decoding"), part("film.encoding")
    whole = decoding.decode_film(vae, {"samples": latents})
    tiled = decoding.decode_film(vae, {"samples": latents}, 64)
    assert 0 < rms(tiled, whole) < 0.03
    coded = encoding.encode_film(vae, pixels, 64)["samples"]
    assert 0 < rms(coded, latents) < 0.05
    assert torch.equal(decoding.decode_film(vae, {"samples": latents}, 96), whole)
    assert torch.equal(encoding.encode_film(vae, pixels, 128)["samples"], latents)


def coded_by_our_nodes(vae_loader):
    """Five frames of noise, encoded and decoded by our nodes in tiles of 64 px."""
    prompt = {"3": vae_loader}
    size = {"width": 96, "height": 64, "batch_size": 5}
    prompt["13"] = graphs.node("EmptyImage", **size, color=0x804020)
    prompt["14"] = graphs.node("ImageAddNoise", image=["13", 0], seed=4, strength=0.2)
    prompt["50"] = graphs.node("SkyReelsV2Encode", pixels=["14", 0], vae=["3", 0], tile_size=64)
    prompt["52"] = graphs.node("SkyReelsV2Decode", samples=["50", 0], vae=["3", 0], tile_size=64)
    links = {"vae": ["3", 0], "pixels": ["14", 0], "coded": ["50", 0], "frames": ["52", 0]}
    return prompt, links


def test_both_nodes_take_a_tile_size(look, part):
    prompt, links = coded_by_our_nodes(graphs.film()["3"])
    vae, pixels, coded, frames = look(prompt, **links)
    samples = part("film.encoding").encode_film(vae, pixels, 64)["samples"]
    assert torch.equal(coded["samples"], samples)
    assert torch.equal(frames, part("film.decoding").decode_film(vae, {"samples": samples}, 64))


def test_cores_vae_takes_a_tile_size(look):
    loader = graphs.node("VAELoader", vae_name=graphs.TOY["vae"])
    prompt, links = coded_by_our_nodes(loader)
    vae, pixels, coded, frames = look(prompt, **links)
    samples = vae.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=16).float()
    assert torch.equal(coded["samples"], samples)
    assert torch.equal(frames, vae.decode_tiled(samples, tile_x=8, tile_y=8, overlap=2)[0])


def test_tiles_are_nearer_to_untiled_than_cores(vae, film):
    """Core's own tiling of the same VAE, with the same size and overlap of tiles."""
    import comfy.sd

    pixels, latents = film
    frames = vae.decode(latents)
    core = comfy.sd.VAE.decode_tiled(vae, latents, tile_x=8, tile_y=8, overlap=2)
    ours = vae.decode_tiled(latents, tile_x=8, tile_y=8, overlap=2)
    assert ours.shape == core.shape and rms(ours, frames) < rms(core, frames)
    core = comfy.sd.VAE.encode_tiled(vae, pixels, tile_x=64, tile_y=64, overlap=16)
    ours = vae.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=16)
    assert ours.shape == core.shape and rms(ours, latents) < rms(core, latents) / 2


def test_core_nodes_stream_too(small, part):
    """Their results are those of our nodes; tiles of time need nothing, as time is a stream."""
    import nodes

    latents = torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    ours = part("film.decoding").decode_film(small, {"samples": latents})
    assert torch.equal(nodes.VAEDecode().decode(small, {"samples": latents})[0], ours)
    tiled = nodes.VAEDecodeTiled().decode(small, {"samples": latents}, 64, 16, 8, 4)[0]
    assert torch.equal(tiled, part("film.decoding").decode_film(small, {"samples": latents}, 64))
    pixels = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    ours = part("film.encoding").encode_film(small, pixels)["samples"]
    assert torch.equal(nodes.VAEEncode().encode(small, pixels)[0]["samples"], ours)
    tiled = nodes.VAEEncodeTiled().encode(small, pixels, 64, 16)[0]["samples"]
    assert torch.equal(tiled, part("film.encoding").encode_film(small, pixels, 64)["samples"])


@pytest.mark.parametrize(
    ("since", "lack"), [(0, "GPU"), (2, "GPU"), (2, "RAM"), (0, "allocator")], ids=str
)
def test_a_full_device_goes_on_in_tiles_and_loses_nothing(vae, part, film, caplog, since, lack):
    pixels, latents = film
    whole = part("film.decoding").decode_film(vae, {"samples": latents})
    with caplog.at_level(logging.WARNING, "skyreels_v2"), full_device(vae, 64, since, lack):
        made = part("film.decoding").decode_film(vae, {"samples": latents})
    assert "out of memory; going on in tiles of 64 x 64 px" in caplog.text
    before = 5 if since else 0
    assert torch.equal(made[:before], whole[:before])
    assert made.shape == whole.shape and rms(made, whole) < 0.06
    with full_device(vae, 64, since, lack):
        coded = part("film.encoding").encode_film(vae, pixels)["samples"]
    assert torch.equal(coded[:, :, :since], latents[:, :, :since])
    assert coded.shape == latents.shape and rms(coded, latents) < 0.1


@pytest.mark.parametrize("lack", LACKS)
def test_a_device_without_room_for_a_tile_says_what_to_change(vae, part, film, lack):
    """A GPU's error stays one, by which the host knows that its models have to leave it."""
    kind = torch.cuda.OutOfMemoryError if lack == "GPU" else MemoryError
    words = r"of 96 x 64 px: there is not enough memory; tiles were tried\. Set tile_size to 64"
    with full_device(vae, 32, lack=lack):
        with pytest.raises(kind, match=f"VAE decode {words}"):
            part("film.decoding").decode_film(vae, {"samples": film[1]})
        with pytest.raises(kind, match=f"VAE encode {words}"):
            part("film.encoding").encode_film(vae, film[0])


def test_another_error_is_not_taken_for_lack_of_memory(vae, part, film, monkeypatch):
    def fail(stream, given):
        raise RuntimeError("as the test wants it")

    monkeypatch.setattr(part("sockets.vae_streams").DecodeStream, "push", fail)
    with pytest.raises(RuntimeError, match="^as the test wants it$"):
        part("film.decoding").decode_film(vae, {"samples": film[1]})


def test_another_vae_without_memory_says_what_to_change(vae, part, film, monkeypatch):
    import comfy.sd

    other = comfy.sd.VAE.__new__(comfy.sd.VAE)

    def fail(*given, **options):
        raise MemoryError

    for name in ("decode", "encode", "decode_tiled", "encode_tiled"):
        monkeypatch.setattr(other, name, fail, raising=False)
    for size in (0, 64):
        with pytest.raises(MemoryError, match="VAE decode: .* set tile_size"):
            part("film.decoding").decode_film(other, {"samples": film[1]}, size)
        with pytest.raises(MemoryError, match="VAE encode: .* set tile_size"):
            part("film.encoding").encode_film(other, film[0], size)


def test_frames_without_room_say_how_much_they_take(part, monkeypatch):
    piece = torch.zeros(4, 8, 8, 3)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *given, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        part("film.decoding")._reserve_frames(1, piece)

    def fail(*given, **options):
        raise LACKS["allocator"]

    monkeypatch.setattr(torch.Tensor, "new_empty", fail)
    with pytest.raises(MemoryError, match=r"1398102 frames of 8 x 8 px, 1.0 GB of RAM"):
        part("film.decoding")._reserve_frames(1398102, piece)


def test_only_our_encode_node_has_a_bar_for_encoding(vae, part, film, monkeypatch):
    """Within the sampler a second bar would take the film's place: 100 % at every seam."""
    import comfy.utils

    made = []

    class Bar:
        def __init__(self, total):
            made.append([total, 0])

        def update(self, count):
            made[-1][1] += count

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    part("film.encoding").encode_frames(vae, film[0])
    list(part("film.decoding").decode_pieces(vae, film[1]))
    assert not made
    part("film.encoding").encode_film(vae, film[0])
    part("film.decoding").decode_film(vae, {"samples": film[1]})
    assert made == [[3, 3], [3, 3]]


def test_making_a_vae_silences_one_warning_and_no_other(part, caplog):
    host = part("sockets.vae")
    other = threading.Thread(target=lambda: logging.warning("No VAE weights of another thread"))
    with caplog.at_level(logging.WARNING), host._mute_warning("No VAE weights"):
        logging.warning("WARNING: No VAE weights detected")
        logging.warning("something else")
        other.start()
        other.join()
    logging.warning("No VAE weights later")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["something else", "No VAE weights of another thread", "No VAE weights later"]


@pytest.mark.parametrize("decode", [True, False])
def test_the_largest_tiles_that_fit(vae, part, decode, monkeypatch):
    monkeypatch.setattr(vae, "device", torch.device("cuda"))
    streaming, size = part("sockets.vae_streams"), (60, 104)
    whole = streaming.step_bytes(vae, decode, size)
    assert streaming.choose_tiling(vae, decode, size, whole) is None
    coded = []
    for free in (whole - 1, whole * 3 // 4, whole // 2, whole // 5, whole // 20):
        tiling = streaming.choose_tiling(vae, decode, size, free)
        assert streaming.tile_bytes(vae, decode, size, tiling) <= free
        coded.append(tiling.rows.size * tiling.columns.size)
    assert coded[0] > 0.5 * size[0] * size[1] and coded == sorted(coded, reverse=True)
    smallest = streaming.choose_tiling(vae, decode, size, 0)
    assert smallest.smallest and streaming.describe_tiling(smallest) == "64 x 64 px"


def test_the_host_is_told_of_one_step(vae):
    told = vae.memory_used_decode((1, 16, 25, 60, 104), torch.float32)
    assert told == vae.memory_used_decode((1, 16, 1, 60, 104), torch.float32)
    assert vae.memory_used_encode((1, 3, 97, 480, 832), torch.float32) < told


@pytest.mark.parametrize(("size", "nearest"), [(32, 64), (100, 96), (65, 64)])
def test_other_tile_sizes_are_refused(vae, part, film, size, nearest):
    for node in (
        lambda: part("film.decoding").decode_film(vae, {"samples": film[1]}, size),
        lambda: part("film.encoding").encode_film(vae, film[0], size),
    ):
        with pytest.raises(ValueError, match=rf"tile_size is {size} px.*nearest: {nearest}"):
            node()


@pytest.fixture
def on_disk(part, monkeypatch):
    """The module of the streams, where a step of any size takes too much of a CPU's RAM."""
    streams = part("sockets.vae_streams")
    monkeypatch.setattr(streams, "MOST", 0)
    return streams


def test_on_a_cpu_large_steps_go_by_way_of_the_disk(vae, part, film, on_disk, caplog):
    """The same frames but for rounding, which tiles are not."""
    caplog.set_level(logging.INFO, "skyreels_v2")
    latents, before = film[1], sorted(on_disk.disk_folder().iterdir())
    frames = part("film.decoding").decode_film(vae, {"samples": latents})
    assert "With 0.0 GB of it and 0.0 GB of the disk the frames are the same" in caplog.text
    on_disk.MOST = 10**12
    whole = part("film.decoding").decode_film(vae, {"samples": latents})
    assert (frames - whole).abs().max() < 1e-4
    assert sorted(on_disk.disk_folder().iterdir()) == before


def test_a_disk_that_is_full_or_fails_is_told_and_ram_is_used(
    vae, part, film, on_disk, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "skyreels_v2")
    latents = film[1]
    decode = part("film.decoding").decode_film
    monkeypatch.setattr(on_disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    whole = decode(vae, {"samples": latents})
    assert "the disk has no room for" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(on_disk, "MOST", 0)

    def fail(*args):
        yield from itertools.islice(through_disk(*args), 2)
        raise OSError(28, "No space left on device")

    through_disk = on_disk.decode_on_disk
    monkeypatch.setattr(on_disk, "decode_on_disk", fail)
    frames = decode(vae, {"samples": latents})
    assert "cannot be used (No space left on device); going on in RAM" in caplog.text
    assert (frames - whole).abs().max() < 1e-4 and torch.equal(frames[5:], whole[5:])

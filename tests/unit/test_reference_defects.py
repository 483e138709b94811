"""Defects of the reference that cannot happen here, and the table of all of them."""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys
import warnings

import pytest
import torch

from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, film_frames, generate
from skyreels_model.vae import VideoVAE

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "reference_defects.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", TABLE, re.MULTILINE)
SMALL = FilmPlan(
    num_frames=29, width=16, height=16, window=17, overlap=9, steps=3, history="latents"
)


@pytest.fixture(scope="module")
def model():
    """A tiny transformer with random weights and a fps embedding."""
    torch.manual_seed(0)
    config = ModelConfig(
        dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=32, fps_embedding=True
    )
    model = SkyReelsModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def test_the_table_has_every_defect_and_names_tests_that_exist():
    assert [int(number) for number, _ in ROWS] == list(range(1, 33))
    unnamed = [int(number) for number, row in ROWS if "::" not in row]
    assert unnamed == [30], "a property of a checkpoint"
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


PROGRAM = """
import sys, hashlib
sys.path.insert(0, sys.argv[1])
import torch
torch.rand(7)
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.history import latent_history
numbers = dict(width=16, height=16, window=17, overlap=9, steps=3, history="latents")
plan = FilmPlan(num_frames=29, **numbers)
film = Film(plan)
def field(x, t):
    return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000
for _ in generate(field, plan, SeededNoise(3), latent_history(3), film=film):
    pass
print(hashlib.sha256(torch.cat(film.finished, dim=2).numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_makes_the_same_film():
    """Bit for bit, whatever was drawn before: prefix noise and all."""
    from skyreels_model.rollout.history import latent_history

    def field(x, t):
        return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000

    assert SMALL.prefix_noise and SMALL.num_windows > 1
    film = Film(SMALL)
    for _ in generate(field, SMALL, SeededNoise(3), latent_history(3), film=film):
        pass
    own = hashlib.sha256(torch.cat(film.finished, dim=2).numpy().tobytes()).hexdigest()
    command = [sys.executable, "-c", PROGRAM, str(ROOT)]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == own


def test_a_plan_cannot_be_changed():
    for field in dataclasses.fields(SMALL):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(SMALL, field.name, 1)
    short = FilmPlan(num_frames=29, window=97)
    assert short.window == 97 and short.window_at(0).length == 8
    assert sum("block" in field.name for field in dataclasses.fields(SMALL)) == 1


def inputs(batch, frames=3):
    x, t = torch.randn(batch, 16, frames, 4, 4), torch.randint(0, 1000, (batch, frames))
    return x, t, torch.randn(batch, 8, 32)


def test_a_forward_warns_of_nothing(model):
    x, t, text = inputs(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(x, t, text, fps=torch.tensor([24])).shape == x.shape


def test_samples_of_a_batch_keep_their_own_frame_rate(model):
    x, t, text = inputs(3)
    rates = torch.tensor([16, 24, 16])
    together = model(x, t, text, fps=rates)
    for i, rate in enumerate(rates):
        one = slice(i, i + 1)
        alone = model(x[one], t[one], text[one], fps=rate[None])
        assert torch.allclose(together[one], alone, atol=1e-5)
        wrong = model(x[one], t[one], text[one], fps=40 - rate[None])
        assert not torch.allclose(wrong, alone, atol=1e-3)


def test_every_other_frame_rate_counts_as_24(model):
    x, t, text = inputs(1)
    velocity = {
        rate: model(x, t, text, fps=torch.tensor([float(rate)])) for rate in (15, 16, 24, 25)
    }
    assert torch.equal(velocity[15], velocity[24]) and torch.equal(velocity[25], velocity[24])
    assert not torch.equal(velocity[16], velocity[24])


def test_the_default_film_is_landscape():
    plan = FilmPlan()
    assert (plan.width, plan.height) == (960, 544) and plan.latent_size == (68, 120)


@torch.inference_mode()
def test_frames_are_not_cut_to_eight_bits():
    torch.manual_seed(0)
    vae = VideoVAE(dim=8).eval()
    plan = dataclasses.replace(SMALL, num_frames=9)
    film = Film(plan)
    for _ in generate(lambda x, t: x, plan, SeededNoise(3), film=film):
        pass
    frames = (torch.cat(list(film_frames(film, vae)), dim=2) + 1) * 127.5
    assert (frames - frames.round()).abs().mean() > 0.1


def test_121_frames_in_blocks_of_5():
    plan = FilmPlan(num_frames=257, window=121, block_size=5, ar_step=5)
    assert [window.length for window in plan.windows()] == [31, 31, 13]
    for window in plan.windows():
        matrix = plan.matrix(window)
        assert matrix.update.any(dim=1).all() and matrix.index.shape[1] == window.length


@pytest.mark.parametrize("sliding", [False, True])
def test_the_loop_never_waits_for_the_device(sliding):
    """On a device whose numbers cannot be read at all: a read would raise."""
    plan = FilmPlan(
        num_frames=17, width=16, height=16, window=17, overlap=9, steps=5, ar_step=2,
        sliding=sliding,
    )  # fmt: skip
    film = Film(plan)

    def velocity(x, t):
        assert x.device.type == t.device.type == "meta"
        return torch.empty_like(x)

    run = generate(velocity, plan, SeededNoise(3), device="meta", film=film)
    rows = [next(run) for _ in range(plan.total_rows())]
    assert all(row.denoised.device.type == "meta" for row in rows)

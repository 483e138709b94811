"""Films of the T2V and I2V models, which have one noise level for all frames."""

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.framing import fit_image
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, film_frames, generate
from skyreels_model.vae import normalize_latents

CASES = ("sample_t2v", "sample_i2v")


class RecordedNoise:
    """The reference's own draw."""

    def __init__(self, data):
        self.data = data

    def initial(self, window, shape):
        noise = self.data[f"seg{window}.noise"][None]
        assert noise.shape == shape
        return noise


class GuidedModel:
    """velocity(x, t) with the reference's guidance; keeps what it was shown."""

    def __init__(self, case, data):
        self.model, self.guidance = models.dit(case), case["parameters"]["guidance"]
        self.texts = [
            golden_data.padded_text(data[f"{name}_embeds_rows"]) for name in ("prompt", "negative")
        ]
        self.y = (
            data["y"][None] if "y" in data else torch.zeros(1, 0, *data["seg0.noise"].shape[1:])
        )
        self.kwargs = {"clip_fea": clip_features(data)} if "clip_lut" in data else {}
        self.inputs, self.timesteps, self.first_output = [], [], None

    def __call__(self, x, t):
        self.inputs.append(x)
        self.timesteps.append(t[0])
        shown = torch.cat([x, self.y], dim=1)
        cond, uncond = (self.model(shown, t, text, **self.kwargs) for text in self.texts)
        if self.first_output is None:
            self.first_output = cond
        return uncond + self.guidance * (cond - uncond)


def clip_features(data):
    k, j = torch.meshgrid(torch.arange(257), torch.arange(1280), indexing="ij")
    return data["clip_lut"][(29 * k + 7 * j) % golden_data.LUT_SIZE][None]


def plan_of(case) -> FilmPlan:
    p = case["parameters"]
    return FilmPlan(
        num_frames=p["num_frames"],
        width=p["width"],
        height=p["height"],
        steps=p["steps"],
        shift=p["shift"],
    )


def made(name, solver="unipc"):
    case, data = golden_data.case(name), golden_data.tensors(name)
    model, film = GuidedModel(case, data), Film(plan_of(case), solver)
    list(generate(model, film.plan, RecordedNoise(data), film=film))
    return film, model, data


@pytest.mark.parametrize("name", CASES)
def test_film_is_the_references(name):
    """A synchronous film of one window, every frame at the row's timestep."""
    film, model, data = made(name)
    tolerance = max(1e-4, 50 * golden_data.case(name)["measured"]["rel_perturbed"])
    shown = torch.stack(model.timesteps)
    assert torch.equal(shown, data["seg0.timesteps"].expand_as(shown))
    first = data["seg0.model_output_first.row0"]
    assert golden_data.relative_l2(model.first_output[0], first) <= tolerance
    for key in (k for k in data if k.startswith("seg0.model_input.row")):
        row = model.inputs[int(key.rsplit("row", 1)[1])][0]
        assert golden_data.relative_l2(row, data[key]) <= tolerance, key
    assert golden_data.relative_l2(film.finished[0][0], data["seg0.final_latents"]) <= tolerance
    video = torch.cat(list(film_frames(film, models.vae())), dim=2)[0]
    difference = (video[:, :, 1::4, 2::5] - data["video_sub"]).abs()
    assert difference.max() <= 5e-3 and difference.mean() <= 5e-4


@pytest.mark.parametrize("name", CASES)
def test_references_solver_is_right_here(name):
    """Its T2V and I2V loops do not have the defect of its diffusion-forcing loop."""
    film, _, data = made(name, "unipc_as_shipped")
    assert golden_data.relative_l2(film.finished[0][0], data["seg0.final_latents"]) > 1e-3


def test_conditioning_channels_are_the_references():
    """A mask of the given latent frame, then the latents of the image and grey frames after it."""
    case, data = golden_data.case("sample_i2v"), golden_data.tensors("sample_i2v")
    p = case["parameters"]
    image = fit_image(data["image"].float() / 255, p["width"], p["height"])
    frames = torch.full((p["num_frames"], *image.shape), 0.5)
    frames[0] = image
    pixels = frames.permute(3, 0, 1, 2)[None] * 2 - 1  # (1, 3, T, H, W)
    latents = normalize_latents(models.vae().encode(pixels))[0]
    assert golden_data.relative_l2(latents, data["seg0.encoded0"]) <= 1e-5
    assert golden_data.relative_l2(latents, data["y"][4:]) <= 1e-5
    mask = torch.zeros_like(data["y"][:4])
    mask[:, 0] = 1
    assert torch.equal(data["y"][:4], mask)

"""Our nodes in the real host: films, windows, previews, cancel, determinism."""

import dataclasses
import sys

import graphs
import pytest
import torch

from skyreels_model import budget as fit
from skyreels_model.plan.film_plan import FilmPlan
from toy.toyset import ToySet

pytestmark = pytest.mark.usefixtures("kept_loaders")


def test_long_film_has_the_asked_number_of_frames_and_knows_its_seams(look):
    prompt = graphs.film(frames=41)
    frames, latent, plan = look(prompt, frames=["7", 0], latent=["6", 0], plan=["5", 0])
    assert frames.shape == (41, 32, 32, 3) and 0 <= frames.min() and frames.max() <= 1
    assert latent["samples"].shape == (1, 16, 11, 4, 4)
    assert plan.num_windows == 4


@pytest.mark.parametrize(
    "changes",
    [{}, {"anchor": 1.0}, {"idle_frames": "left_out"}],
    ids=["", "anchor", "idle frames left out"],
)
def test_film_through_the_host_is_the_film_without_it(look, changes):
    """The same film by `skyreels_model` alone, with the guidance written out."""
    prompt = graphs.film(frames=33, ar_step=2, **changes)
    frames, plan = look(prompt, frames=["7", 0], plan=["5", 0])
    numbers = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    alone = ToySet.load().film(graphs.PROMPT, FilmPlan(**numbers), seed=1, guidance=4.0)
    assert (frames - torch.from_numpy(alone)).abs().max() < 2e-3


def test_same_inputs_same_film_and_a_longer_one_begins_like_the_shorter(look):
    short = graphs.film(frames=33)
    first, second = (look(short, latent=["6", 0])[0]["samples"] for _ in range(2))
    assert torch.equal(first, second)
    (longer,) = look(graphs.film(frames=49), latent=["6", 0])
    assert torch.equal(longer["samples"][:, :, :9], first)


def test_progress_counts_rows_and_previews_show_the_frame_being_made(look, monkeypatch):
    import comfy.cli_args
    import latent_preview

    shown = []
    method = comfy.cli_args.LatentPreviewMethod.Latent2RGB
    # Set before each run by the host, from its default.
    monkeypatch.setattr(latent_preview, "default_preview_method", method)
    original = latent_preview.Latent2RGBPreviewer.decode_latent_to_preview

    def decode(self, x0):
        shown.append(x0.clone())
        return original(self, x0)

    monkeypatch.setattr(latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview", decode)
    states = []

    def on_event(event, data):
        if event == "progress_state" and "6" in data["nodes"]:
            states.append((data["nodes"]["6"]["value"], data["nodes"]["6"]["max"]))

    latent, plan = look(graphs.film(frames=33, ar_step=3), on_event, latent=["6", 0], plan=["5", 0])
    assert len(shown) == plan.total_rows()
    assert all(x0.shape == (1, 16, 1, 4, 4) for x0 in shown)
    assert max(states) == (plan.total_rows(), plan.total_rows())
    # The last preview is the last frame's final estimate, so it is in the film, normalised.
    import comfy.latent_formats

    last = comfy.latent_formats.Wan21().process_in(latent["samples"][:, :, -1:])
    assert torch.allclose(shown[-1].cpu(), last, atol=1e-4)


def test_cancel_stops_within_a_forward_and_the_next_run_works(look, run_prompt, monkeypatch):
    import nodes

    # The pack as the host loaded it, which is not the copy that the unit tests import.
    name = next(n for n in sys.modules if "/" in n and n.endswith(".skyreels_model.model.layers"))
    module = sys.modules[name]
    calls = []
    original = module.Block.forward

    def forward(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # the second block of the second row
            nodes.interrupt_processing()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(module.Block, "forward", forward)
    prompt = graphs.film()
    prompt["8"] = graphs.node("PreviewAny", source=["6", 0])
    result = run_prompt(prompt)
    assert result.interrupted and not result.success
    assert len(calls) == 6
    monkeypatch.setattr(module.Block, "forward", original)
    (frames,) = look(graphs.film(), frames=["7", 0])
    assert len(frames) == 17


def test_schedule_draws_and_tells_what_it_chose(look):
    prompt = graphs.film(frames=41, ar_step=2, seconds=2.0)
    outputs = {"picture": 1, "summary": 2, "frames": 3, "fps": 4}
    picture, summary, frames, fps = look(prompt, **{k: ["5", v] for k, v in outputs.items()})
    assert picture.ndim == 4 and picture.shape[3] == 3 and picture.std() > 0.05
    assert frames == 48 and fps == 24.0
    assert "48 frames" in summary and "windows" in summary and "model calls" in summary
    # The window is five latents; memory is told for it, not for the film.
    assert summary.endswith(fit.describe_memory(5, 32, 32, None)) and "no GPU" in summary


def test_the_card_is_named_for_people(host, monkeypatch):
    import comfy.model_management as management

    memory = next(
        m for n, m in sys.modules.items() if "/" in n and n.endswith("nodes.host.sockets.memory")
    )
    assert memory.card() is None
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda", 0))
    for name, device in (("cuda:0 NVIDIA GeForce RTX 4090 : native", "NVIDIA GeForce RTX 4090"),
                         ("mps", "mps")):  # fmt: skip
        monkeypatch.setattr(management, "get_torch_device_name", lambda _, name=name: name)
        monkeypatch.setattr(management, "get_total_memory", lambda _: 24 * 2**30)
        assert memory.card() == (device, 24 * 2**30)


@pytest.mark.parametrize("solver", ["unipc", "euler", "unipc_as_shipped"])
def test_every_solver_makes_a_film(look, solver):
    prompt = graphs.film()
    prompt["6"]["inputs"]["solver"] = solver
    (latent,) = look(prompt, latent=["6", 0])
    assert latent["samples"].isfinite().all()

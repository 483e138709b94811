"""SkyReels-V2 Color Anchor in the host: drift told, taken back, seams kept."""

import graphs
import pytest
import torch

from skyreels_model.drift import statistics
from skyreels_model.vae import normalize_latents

pytestmark = pytest.mark.usefixtures("kept_loaders")


def graph(strength, **changes):
    prompt = graphs.film(frames=33, **changes)
    prompt["8"] = graphs.node("SkyReelsV2ColorAnchor", samples=["6", 0], strength=strength)
    prompt["7"]["inputs"]["samples"] = ["8", 0]
    return prompt


def windows(latent):
    """The own latents of each window."""
    spans = latent["skyreels_v2_film"].spans
    return [latent["samples"][:, :, span.start : span.stop] for span in spans]


def difference(latents, reference):
    """Of means and covariances, as the model sees them, as a share of the reference's."""
    found, wanted = (statistics(normalize_latents(x)) for x in (latents, reference))
    return float((found - wanted).norm() / wanted.norm())


def test_meter_alone_changes_nothing_and_tells_every_window(look):
    before, after, plot, numbers, frames = look(
        graph(0.0),
        before=["6", 0],
        after=["8", 0],
        plot=["8", 1],
        numbers=["8", 2],
        frames=["7", 0],
    )
    assert torch.equal(before["samples"], after["samples"]) and frames.shape[0] == 33
    assert plot.shape == (1, 200, 480, 3)
    lines = numbers.splitlines()
    assert len(lines) == len(windows(before)) + 1 and lines[0].endswith("distance 0.000")


def test_full_strength_gives_all_windows_the_first_ones_statistics(look):
    before, after, frames = look(graph(1.0), before=["6", 0], after=["8", 0], frames=["7", 0])
    first, *rest = windows(after)
    assert torch.equal(first, windows(before)[0]) and frames.shape[0] == 33
    for window, old in zip(rest, windows(before)[1:], strict=True):
        assert difference(window, first) < 0.02 < 0.05 < difference(old, first)


def test_anchor_of_the_schedule_leaves_nothing_to_correct(look):
    (numbers,) = look(graph(0.0, anchor=1.0), numbers=["8", 2])
    shifts = [float(line.split("shift ")[1].split(",")[0]) for line in numbers.splitlines()]
    # The statistics are held in the model's normalised latents; raw ones are a shift and a scale
    # of them, so that nothing changes.
    assert max(shifts) < 1e-3


def test_reference_holds_the_first_window_too(look):
    prompt = graph(1.0)
    prompt["9"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=0x804020)
    prompt["10"] = graphs.node("VAEEncode", pixels=["9", 0], vae=["3", 0])
    prompt["8"]["inputs"]["reference"] = ["10", 0]
    after, reference = look(prompt, after=["8", 0], reference=["10", 0])
    assert all(difference(window, reference["samples"]) < 0.05 for window in windows(after))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_batch_is_refused(run_prompt, frames):
    prompt = graph(1.0)
    prompt["9"] = graphs.node("RepeatLatentBatch", samples=["6", 0], amount=frames)
    prompt["8"]["inputs"]["samples"] = ["9", 0]
    result = run_prompt({**prompt, "11": graphs.node("PreviewAny", source=["8", 2])})
    assert result.success is (frames == 1), result.describe()
    assert frames == 1 or "batch of 2" in result.describe()

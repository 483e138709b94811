"""What a link or a prompt over the API can bring, and no widget can."""

import graphs
import psutil
import pytest
import torch

from devtools.prompt import InvalidPrompt

pytestmark = pytest.mark.usefixtures("kept_loaders")


@pytest.fixture
def node(look):
    """A node of the pack by its id, to be called as the host does."""
    import nodes

    def call(name, **inputs):
        return nodes.NODE_CLASS_MAPPINGS[name].execute(**inputs).args

    return call


SIZES = {
    "width": 32, "height": 32, "frames": 17, "window": 17, "overlap": 9, "steps": 2, "shift": 5.0,
    "ar_step": 0, "block_size": 1, "prefix_noise": 20, "fps": 24,
}  # fmt: skip


def test_nothing_on_an_optional_input_is_as_if_it_were_not_connected(node):
    optional = (
        "seconds",
        "history",
        "sigmas",
        "sliding",
        "anchor",
        "denoise",
        "preset",
        "fps_float",
        "idle_frames",
        "finished_frames",
        "refresh_every",
    )
    plain, *_ = node("SkyReelsV2Schedule", **SIZES)
    (without, *_) = node("SkyReelsV2Schedule", **SIZES, **dict.fromkeys(optional))
    assert without == plain


def test_a_number_longer_than_any_float_is_refused(node):
    with pytest.raises(ValueError, match=r"^width is 10+… .*nearest: 4096"):
        node("SkyReelsV2Schedule", **{**SIZES, "width": 10**400})


@pytest.mark.parametrize("value", [0.3, True, {"a": "b"}])
@pytest.mark.parametrize("loader", ["1", "2", "3"])
def test_a_name_that_is_no_text_is_refused_by_name(run_prompt, loader, value):
    prompt = graphs.film()
    inputs = prompt[loader]["inputs"]
    name = next(key for key in inputs if key.endswith("_name"))
    inputs[name] = value
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    with pytest.raises(InvalidPrompt, match=f"{name} is .*it must be one of") as refused:
        run_prompt(prompt)
    assert "xception" not in str(refused.value)


FLAWS = [
    (lambda tensor: tensor.to("meta"), "meta device"),
    (lambda tensor: tensor.to_sparse(), "layout sparse"),
    (lambda tensor: tensor.to(torch.float8_e4m3fn), "numbers of type float8"),
    (lambda tensor: tensor.to(torch.complex64), "numbers of type complex64"),
]


@pytest.mark.parametrize(("change", "words"), FLAWS)
def test_tensors_that_cannot_be_counted_with_are_refused(node, change, words):
    plan, *_ = node("SkyReelsV2Schedule", **SIZES)
    with pytest.raises(ValueError, match=f"^start_image has .*{words}"):
        node("SkyReelsV2Frames", schedule=plan, start_image=change(torch.rand(1, 32, 32, 3)))
    with pytest.raises(ValueError, match=f"^samples has .*{words}"):
        samples = change(torch.zeros(1, 16, 2, 4, 4))
        node("SkyReelsV2ColorAnchor", samples={"samples": samples}, strength=1.0)
    with pytest.raises(ValueError, match=f"^sigmas has .*{words}"):
        node("SkyReelsV2Schedule", **SIZES, sigmas=change(torch.tensor([1.0, 0.5, 0.0])))


def test_latents_far_beyond_those_of_pictures_are_refused(node):
    samples = torch.zeros(1, 16, 2, 4, 4)
    samples[0, 3, 1] = 1e30
    with pytest.raises(ValueError, match=r"^samples has numbers up to 1e\+30 in latent frame 1"):
        node("SkyReelsV2ColorAnchor", samples={"samples": samples}, strength=1.0)


@pytest.fixture
def small_machine(monkeypatch):
    """100 MB of RAM are free, and no swap."""
    ram, swap = psutil.virtual_memory()._replace(available=10**8), psutil.swap_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(psutil, "swap_memory", lambda: swap._replace(free=0))


def test_frames_that_this_machine_has_no_ram_for_are_refused_before_work(
    look, node, request, monkeypatch
):
    text, vae = look(graphs.film(), text=["4", 0], vae=["3", 0])
    request.getfixturevalue("small_machine")
    for work in ("encode", "decode"):
        monkeypatch.setattr(vae, work, lambda *given: pytest.fail("work had begun"))
    image = torch.rand(1, 32, 32, 3)
    inputs = {"positive": text, "negative": text, "vae": vae, "start_image": image}
    with pytest.raises(ValueError, match=r"^frames is 1001 at 1024 x 1024.* 0\.1 GB are free"):
        node("SkyReelsV2ImageToVideo", **inputs, width=1024, height=1024, frames=1001)
    film = torch.zeros(1, 16, 1, 4, 4).expand(-1, -1, 3000, -1, -1)
    with pytest.raises(ValueError, match=r"^samples is a film of 11997 frames at 32 x 32"):
        node("SkyReelsV2Decode", samples={"samples": film}, vae=vae)


def test_a_strength_that_is_no_number_does_not_pass_with_a_prompt(look, run_prompt):
    prompt = graphs.film()
    prompt["30"] = graphs.node(
        "ConditioningSetAreaStrength", conditioning=["4", 0], strength=float("nan")
    )
    prompt["6"]["inputs"]["positive"] = ["30", 0]
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and "positive has a strength of nan" in result.describe()

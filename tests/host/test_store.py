"""Films on disk through the host: gone on with, and never mixed with others."""

import functools
import importlib
import sys

import graphs
import pytest
import torch

from devtools import inprocess

pytestmark = pytest.mark.usefixtures("kept_loaders")

FILM = {
    "width": 16, "height": 16, "frames": 41, "window": 25, "overlap": 9, "steps": 4, "ar_step": 1,
}  # fmt: skip


@pytest.fixture
def films(host, tmp_path, monkeypatch):
    """The folder in which films lie."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / "skyreels_v2_films"


def model_calls(data):
    """How many the sampler at work has made; the host tells some of them."""
    node = data["nodes"].get("6", {})
    return node["value"] if node.get("state") == "running" and node["max"] > 1 else 0


def stored(name="night train", save_every=0.0, afresh=False, **film):
    prompt = graphs.film(**{**FILM, **film})
    prompt["30"] = graphs.node(
        "SkyReelsV2Store", name=name, save_every=save_every, start_afresh=afresh
    )
    prompt["6"]["inputs"]["store"] = ["30", 0]
    return prompt


@pytest.fixture
def make(look, films):
    """`make(prompt)` -> (latents, the report's lines about the store, model calls made)"""

    def run(prompt):
        calls = []

        def on_event(event, data):
            if event == "progress_state" and model_calls(data):
                calls.append(model_calls(data))

        latent, report = look(prompt, on_event, latent=["6", 0], report=["6", 3])
        return latent["samples"], report.splitlines()[1:], calls

    return run


@pytest.fixture(scope="module")
def plain(look):
    """`plain(**changes)` -> the latents of the film that is not saved, made once."""

    @functools.cache
    def run(**film):
        return look(graphs.film(**{**FILM, **film}), latent=["6", 0])[0]["samples"]

    return run


def test_a_finished_film_is_taken_from_the_disk(make, plain, films):
    first, said, _ = make(stored())
    assert said == ["night train: 0 of 2 windows were on disk, 2 made"]
    assert torch.equal(first, plain())
    again, said, calls = make(stored())
    assert said == ["night train: 2 of 2 windows were on disk, 0 made"]
    assert torch.equal(again, first) and not calls
    assert len(sorted((films / "night train").glob("window_*"))) == 2


@pytest.fixture
def cancel_after(host, monkeypatch):
    """`cancel_after(calls)`: the next film is cancelled when so many model calls are made."""
    import nodes

    name = next(n for n in sys.modules if "/" in n and n.endswith("nodes.host.film.progress"))
    progress = sys.modules[name].FilmProgress
    finish_row = progress.finish_row

    def run(calls):
        def finish(self, row):
            finish_row(self, row)
            if self.done == calls:
                monkeypatch.setattr(progress, "finish_row", finish_row)
                nodes.interrupt_processing()

        monkeypatch.setattr(progress, "finish_row", finish)

    return run


@pytest.mark.parametrize("history", ["pixels", "latents"])
@pytest.mark.parametrize(("calls", "made"), [(3, 2), (12, 1)])
def test_a_cancelled_film_goes_on_to_the_same_bits(
    run_prompt, make, plain, films, cancel_after, history, calls, made
):
    prompt = stored(save_every=3600.0, history=history)
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    cancel_after(calls)
    assert run_prompt(prompt).interrupted
    assert any((films / "night train").glob("row_*"))
    del prompt["9"]
    samples, said, told = make(prompt)
    assert torch.equal(samples, plain(history=history))
    assert min(told) > calls and said[0].endswith(f", {made} made")
    assert not any((films / "night train").glob("row_*"))


def test_what_a_node_remembers_of_a_window_is_not_lost_halfway(
    run_prompt, make, look, films, cancel_after
):
    """APG's momentum lies in its function: a window at work cannot be gone on with."""

    def prompt(graph):
        graph["9"] = graphs.node("APG", model=["1", 0], eta=1.0, norm_threshold=5.0, momentum=-0.5)
        graph["6"]["inputs"]["model"] = ["9", 0]
        return graph

    cancel_after(12)
    cancelled = prompt(stored(save_every=0.0))
    cancelled["10"] = graphs.node("PreviewImage", images=["7", 0])
    assert run_prompt(cancelled).interrupted
    assert not any((films / "night train").glob("row_*"))
    (whole,) = look(prompt(graphs.film(**FILM)), latent=["6", 0])
    samples, said, _ = make(prompt(stored()))
    assert said == ["night train: 1 of 2 windows were on disk, 1 made"]
    assert torch.equal(samples, whole["samples"])


@pytest.fixture
def one_queue(host, monkeypatch):
    """Runs share the results of nodes, as in a server."""
    import execution

    made, kept = execution.PromptExecutor, []

    def executor(server, **options):
        kept[:] = kept or [made(server, **options)]
        kept[0].server = server
        return kept[0]

    executor.__wrapped__ = made  # whose options are asked for
    monkeypatch.setattr(execution, "PromptExecutor", executor)


def test_a_cancelled_film_is_queued_again_with_the_models_that_are_loaded(
    run_prompt, make, plain, films, cancel_after, one_queue
):
    """They still have what the last run has put on them."""
    prompt = stored(save_every=3600.0)
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    cancel_after(12)
    assert run_prompt(prompt).interrupted
    del prompt["9"]
    samples, said, calls = make(prompt)
    assert said == ["night train: 1 of 2 windows were on disk, 1 made"] and min(calls) > 12
    assert torch.equal(samples, plain())


def test_another_prompt_makes_other_windows_and_keeps_the_old(make, films):
    make(stored())
    other = stored()
    other["4"]["inputs"]["prompt"] = "a green circle moving up on a grey background"
    _, said, _ = make(other)
    assert said[0].startswith("night train: 0 of 2") and said[1] == "not as they were: prompt"
    _, said, calls = make(stored())
    assert said[0].startswith("night train: 2 of 2") and not calls


CHANGES = {
    "seed": ("6", {"seed": 5}),
    "cfg": ("6", {"cfg": 3.0}),
    "solver": ("6", {"solver": "euler"}),
    "negative prompt": ("4", {"negative": "blur"}),
    "schedule": ("5", {"shift": 4.0}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_changed_is_named(make, films, what):
    make(stored(frames=25))
    number, values = CHANGES[what]
    prompt = stored(frames=25)
    prompt[number]["inputs"] |= values
    _, said, _ = make(prompt)
    said, takes = said[:2], said[2:]
    assert said == ["night train: 0 of 1 windows were on disk, 1 made", f"not as they were: {what}"]
    old = "1 (seed 1)" if what == "seed" else f"1 (seed 1, another {what})"
    if what == "schedule":  # which is another film
        assert not takes
    else:
        assert takes[0].startswith(f"window 1 has takes {old}, 2 (seed ")


def test_a_longer_film_keeps_what_there_is(make, plain, films):
    make(stored())
    samples, said, _ = make(stored(frames=57))
    assert said == ["night train: 2 of 3 windows were on disk, 1 made"]
    assert torch.equal(samples, plain(frames=57))


def with_lora(prompt, name, strength):
    prompt["40"] = graphs.node("LoraLoaderModelOnly", model=["1", 0], lora_name=name,
                               strength_model=strength)  # fmt: skip
    prompt["6"]["inputs"]["model"] = ["40", 0]
    return prompt


def test_a_lora_and_its_strength_are_part_of_the_film(make, films, small_lora):
    make(with_lora(stored(frames=25), small_lora, 1.0))
    _, said, calls = make(with_lora(stored(frames=25), small_lora, 1.0))
    assert said[0].startswith("night train: 1 of 1") and not calls
    _, said, _ = make(with_lora(stored(frames=25), small_lora, 0.5))
    assert said[1] == "not as they were: model"


def test_a_model_is_the_same_whether_it_is_loaded_or_not(host, look, small_lora):
    """The host adds LoRAs to the weights that it has loaded."""
    import comfy.model_management

    prompt = with_lora({"1": graphs.film()["1"], "6": {"inputs": {}}}, small_lora, 1.0)
    del prompt["6"]
    (model,) = look(prompt, model=["40", 0])
    # Of the pack as the host has loaded it.
    package = type(model.model).__module__.rsplit(".", 2)[0]
    identity = importlib.import_module(f"{package}.film.identity")
    before = identity.identify_model(model)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert model.backup
    assert identity.identify_model(model) == before
    inprocess.unload_models()
    assert identity.identify_model(model) == before


@pytest.mark.parametrize(
    "name",
    [
        "", "a/b", "..", "C:\\films", "x" * 200, "film.", "CON", "nul.txt", "Com1", "lpt9 .a",
        "\U0001f3ac" * 70, "a\ud800b", "del\x7f", "\u3000", "a\nb",
    ],
)  # fmt: skip
def test_a_name_that_is_no_folder(run_prompt, films, name):
    prompt = stored(name=name)
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and "name is" in result.describe() and "nearest" in result.describe()
    assert not films.exists() or not any(films.iterdir())


@pytest.mark.parametrize("name", ["console", "com10", "nullo", "\u591c\u884c \u043d", "[a]"])
def test_a_name_that_is_one(films, name):
    """And the nearest name to one that is not."""
    store = next(m for n, m in sys.modules.items() if "/" in n and n.endswith(".host.film.store"))
    assert store.film_folder(name).name == name
    for other in ("CON", "con.", "\U0001f3ac" * 70, "aux." + "x" * 90, "\ud800", " . "):
        with pytest.raises(ValueError, match="nearest: ") as error:
            store.film_folder(other)
        nearest = str(error.value).split("nearest: ")[1]
        assert store.film_folder(nearest).name == nearest


def test_a_film_that_another_run_is_writing_is_listed(look, films):
    film = films / "dawn"
    film.mkdir(parents=True)
    (film / "window_gone.safetensors").symlink_to(film / "removed.safetensors")
    assert "dawn: 1 windows" in look({"30": stored()["30"]}, films=["30", 1])[0]


def test_films_are_listed_with_their_sizes(look, make, films):
    nodes = {"30": stored()["30"]}
    assert "no films on disk yet" in look(nodes, films=["30", 1])[0]
    make(stored(name="dawn", width=32, height=32))
    assert look(nodes, films=["30", 1])[0].endswith("\ndawn: 2 windows, 0.021 MB")


def test_afresh_makes_all_of_it_again(make, films):
    make(stored())
    _, said, calls = make(stored(afresh=True))
    assert said == ["night train: 0 of 2 windows were on disk, 2 made"] and calls


def test_one_window_is_made_again_between_what_stands_and_taken_back(make, films):
    first, _, _ = make(stored())
    prompt = stored()
    prompt["30"]["inputs"]["takes"] = "window 1 only: seed 7"
    again, said, _ = make(prompt)
    assert said == [
        "night train: 1 of 2 windows were on disk, 1 made",
        "not as they were: leads into, seed",
        "window 1 has takes 1 (seed 1), 2 (seed 7, in this film)",
        "to choose one, write 'window 1: take 1' into takes of the store",
    ]
    # The first window has 7 latents, the last 3 of which the second repeats.
    assert torch.equal(again[:, :, 4:], first[:, :, 4:])
    assert not torch.allclose(again[:, :, :4], first[:, :, :4], atol=1e-2)
    prompt["30"]["inputs"]["takes"] = "window 1: take 1"
    back, said, calls = make(prompt)
    assert torch.equal(back, first) and not calls
    assert said[1] == "window 1 has takes 1 (seed 1, in this film), 2 (seed 7)"


def test_takes_that_cannot_be_are_told_before_any_work(run_prompt, films):
    for takes, why in {
        "shot 2: seed 1": "shot in takes is 2; it must be 1, since the film has no more",
        "all of it": "takes is 'all of it'; it must be lines such as",
        "window 2: take 3": "takes has 'window 2: take 3'; it must be one that is on disk",
    }.items():
        prompt = stored()
        prompt["30"]["inputs"]["takes"] = takes
        prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
        assert why in run_prompt(prompt).describe()

"""SkyReels-V2 TeaCache in the real host: what it leaves out, what it says, and what it refuses."""

import sys

import graphs
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")

STEPS = 10


def cached(threshold=0.8, start=0.0, end=0.0, **changes):
    """A film whose model goes through the node "9"."""
    prompt = graphs.film(frames=33, **{"steps": STEPS, **changes})
    prompt["9"] = tea_cache(["1", 0], threshold, start, end)
    prompt["6"]["inputs"]["model"] = ["9", 0]
    return prompt


def tea_cache(model, threshold=0.3, start=0.0, end=0.0, mode="automatic"):
    return graphs.node(
        "SkyReelsV2TeaCache", model=model, mode=mode, threshold=threshold, start=start, end=end
    )


@pytest.fixture
def forwards(host, monkeypatch):
    """The forwards of the transformer, counted."""
    name = next(n for n in sys.modules if "/" in n and n.endswith("sockets.transformer"))
    dit, calls = sys.modules[name].HostDiT, []
    original = dit.forward

    def forward(self, x, *args, **kwargs):
        calls.append(x.shape)
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(dit, "forward", forward)
    return calls


@pytest.fixture
def told(host, monkeypatch):
    """Texts that the page would show."""
    name = next(n for n in sys.modules if "/" in n and n.endswith("nodes.host.notice"))
    texts = []
    monkeypatch.setattr(sys.modules[name], "show", texts.append)
    return texts


def samples(look, prompt):
    return look(prompt, latent=["6", 0])[0]["samples"]


@pytest.mark.parametrize("changes", [{}, {"ar_step": 2}, {"ar_step": 8, "sliding": True}])
def test_threshold_0_is_the_film_without_the_node(look, changes):
    plain = samples(look, graphs.film(frames=33, steps=STEPS, **changes))
    assert torch.equal(samples(look, cached(0.0, **changes)), plain)


@pytest.mark.parametrize("changes", [{"steps": 20}, {"ar_step": 2}])
def test_calls_are_left_out_and_the_share_is_told(look, forwards, told, changes):
    plan, report = look(cached(**changes), plan=["5", 0], report=["6", 3])
    rows = plan.total_rows()
    left_out = rows - len(forwards)
    assert 0.2 < left_out / rows < 0.8
    assert f"{rows} model calls, {left_out} of them forecast ({left_out / rows:.0%})" in report
    assert any(f"({left_out / rows:.0%} forecast so far)" in text for text in told)
    assert told[-1].startswith(f"{rows} model calls, {left_out} of them forecast")


def test_without_it_the_report_says_that_all_was_computed(look):
    plan, report = look(graphs.film(), plan=["5", 0], report=["6", 3])
    assert report == f"{plan.total_rows()} model calls, all computed"


def test_the_model_that_came_in_is_unchanged(look):
    plain, with_it = look(cached(), plain=["1", 0], with_it=["9", 0])
    (key,) = (
        with_it.model_options["transformer_options"].keys()
        - plain.model_options["transformer_options"].keys()
        - {"wrappers"}
    )
    assert key == "skyreels_v2_cache" and plain.model is with_it.model


def test_a_cancelled_run_leaves_nothing_behind(look, run_prompt, forwards, monkeypatch):
    import nodes

    fresh = samples(look, cached())
    forwards.clear()
    name = next(n for n in sys.modules if "/" in n and n.endswith("nodes.host.film.progress"))
    progress = sys.modules[name].FilmProgress
    original = progress.finish_row

    def finish_row(self, row):
        original(self, row)
        if self.done == 5:
            nodes.interrupt_processing()

    monkeypatch.setattr(progress, "finish_row", finish_row)
    prompt = cached()
    prompt["8"] = graphs.node("PreviewAny", source=["6", 3])
    assert run_prompt(prompt).interrupted
    monkeypatch.setattr(progress, "finish_row", original)
    assert torch.equal(samples(look, cached()), fresh)


def test_a_lora_changed_between_runs_is_a_fresh_film(look, small_lora):
    def film(strength):
        prompt = cached()
        prompt["10"] = graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name=small_lora, strength=strength
        )
        prompt["9"]["inputs"]["model"] = ["10", 0]
        return samples(look, prompt)

    first, second, again = film(1.0), film(5.0), film(1.0)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_each_shot_of_a_storyboard_has_its_own_models_cache(look, forwards):
    prompt = cached()
    for key, model, before in (("20", ["9", 0], None), ("21", ["1", 0], "20")):
        given = {} if before is None else {"previous": [before, 0]}
        prompt[key] = graphs.node(
            "SkyReelsV2Storyboard",
            clip=["2", 0], prompt=graphs.PROMPT, seconds=0.7, transition="cut", model=model,
            **given,
        )  # fmt: skip
    prompt["6"]["inputs"] |= {"storyboard": ["21", 0], "model": ["1", 0]}
    (report,) = look(prompt, report=["6", 3])
    assert 0 < int(report.split(", ")[1].split()[0]) < STEPS
    assert len(forwards) > STEPS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threshold": 0.001, "start": 1.0}, "forecast nothing: raise its threshold"),
        ({"threshold": 1.0, "steps": 60, "frames": 17}, "of the model calls: lower its threshold"),
    ],
)
def test_thresholds_that_skip_nothing_or_nearly_all_are_said(look, settings, words):
    given = {k: v for k, v in settings.items() if k in ("threshold", "start")}
    prompt = cached(**given)
    prompt["5"]["inputs"] |= {k: v for k, v in settings.items() if k not in given}
    (report,) = look(prompt, report=["6", 3])
    assert words in report


def test_ksampler_computes_everything_and_says_so(look, told):
    prompt = graphs.film()
    prompt["9"] = tea_cache(["1", 0])
    prompt["20"] = graphs.node(
        "EmptyHunyuanLatentVideo", width=32, height=32, length=17, batch_size=1
    )
    prompt["21"] = graphs.node(
        "KSampler", model=["9", 0], seed=1, steps=2, cfg=2.0, sampler_name="euler",
        scheduler="simple", positive=["4", 0], negative=["4", 1], latent_image=["20", 0],
        denoise=1.0,
    )  # fmt: skip
    look(prompt, latent=["21", 0])
    assert any("works in SkyReels-V2 Sampler only" in text for text in told)


def easycache(model):
    return graphs.node(
        "EasyCache", model=model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
        verbose=False,
    )  # fmt: skip


def chained(*makers):
    prompt = graphs.film()
    link = ["1", 0]
    for number, make in enumerate(makers):
        prompt[f"c{number}"] = make(link)
        link = [f"c{number}", 0]
    prompt["6"]["inputs"]["model"] = link
    prompt["8"] = graphs.node("PreviewAny", source=["6", 3])
    return prompt


@pytest.mark.parametrize(
    ("makers", "words"),
    [
        ((tea_cache, tea_cache), "model has a SkyReels-V2 TeaCache already; it can have one"),
        ((easycache, tea_cache), "model has EasyCache or LazyCache already"),
        ((tea_cache, easycache), "model has EasyCache and SkyReels-V2 TeaCache"),
    ],
)
def test_a_second_cache_is_refused(run_prompt, forwards, makers, words):
    result = run_prompt(chained(*makers))
    assert not result.success and words in result.describe() and not forwards


@pytest.fixture
def calibrations(host, monkeypatch, tmp_path):
    """The folder of calibrations: an empty one."""
    import folder_paths

    entry = ([str(tmp_path)], {".json"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "skyreels_v2_calibration", entry)
    folder_paths.filename_list_cache.pop("skyreels_v2_calibration", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("skyreels_v2_calibration", None)


def test_a_model_is_calibrated_by_a_film_and_then_known(look, calibrations, forwards):
    prompt = graphs.film(frames=17, steps=STEPS)
    prompt["9"] = tea_cache(["1", 0], mode="calibrate")
    prompt["6"]["inputs"]["model"] = ["9", 0]
    latent, report = look(prompt, latent=["6", 0], report=["6", 3])
    assert torch.equal(latent["samples"], samples(look, graphs.film(frames=17, steps=STEPS)))
    (written,) = calibrations.iterdir()
    assert f"skyreels_v2_calibration/{written.name}: choose it" in report
    assert written.name.startswith("SkyReels-V2-DF-Toy-32P")
    counts = []
    for calibration in ("none", written.name):
        prompt["9"] = tea_cache(["1", 0], 0.3)
        prompt["9"]["inputs"]["calibration"] = calibration
        forwards.clear()
        samples(look, prompt)
        counts.append(len(forwards))
    assert counts[1] < counts[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "published"}, "calibration is 'x.json', and mode is published"),
        ({}, "calibration 'x.json': x.json is no calibration"),
    ],
)
def test_calibrations_that_cannot_be_used_are_refused(
    run_prompt, calibrations, forwards, changes, words
):
    (calibrations / "x.json").write_text("{}", "utf-8")
    prompt = chained(lambda model: tea_cache(model, **changes))
    prompt["c0"]["inputs"]["calibration"] = "x.json"
    result = run_prompt(prompt)
    assert not result.success and words in result.describe() and not forwards


def test_several_models_are_not_calibrated_at_once(run_prompt, forwards):
    prompt = cached()
    prompt["9"] = tea_cache(["1", 0], mode="calibrate")
    for key, model, before in (("20", ["9", 0], None), ("21", ["1", 0], "20")):
        given = {} if before is None else {"previous": [before, 0]}
        prompt[key] = graphs.node(
            "SkyReelsV2Storyboard",
            clip=["2", 0], prompt=graphs.PROMPT, seconds=0.7, transition="cut", model=model,
            **given,
        )  # fmt: skip
    prompt["6"]["inputs"] |= {"storyboard": ["21", 0], "model": ["1", 0]}
    prompt["8"] = graphs.node("PreviewAny", source=["6", 3])
    result = run_prompt(prompt)
    assert not result.success and "calibrate one at a time" in result.describe()
    assert not forwards

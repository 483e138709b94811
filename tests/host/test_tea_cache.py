"""The published TeaCache in the host: KSampler and synchronous films, runs that know no other."""

import gc
import sys
import weakref

import graphs
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")


def module(name):
    """A module of the pack, as the host imported it."""
    return next(m for n, m in sys.modules.items() if "/" in n and n.endswith(f".{name}"))


@pytest.fixture(scope="module")
def model(open_model):
    return open_model(graphs.TOY["model"])[0]


@pytest.fixture(scope="module")
def texts():
    """A prompt and a negative prompt as the host's conditioning."""
    made = torch.Generator().manual_seed(3)
    return [[[torch.randn(1, 512, 64, generator=made), {}]] for _ in range(2)]


@pytest.fixture(scope="module")
def cached(model):
    """`cached(threshold)`: the toy model with a rule that no published model has."""

    def run(threshold=0.5, **settings):
        cache = module("nodes.host.sockets.tea_cache")
        rule = module("skyreels_model.cache.published").Rule("toy", (1.0, 0.0), False, 1, 1)
        return cache.use_published(model, cache.PublishedCache(threshold, rule=rule, **settings))

    return run


@pytest.fixture
def runs(monkeypatch):
    """Every run's cache, with the bytes of the residuals that it kept."""
    seen, cached_run = [], module("nodes.host.sockets.tea_cache").CachedRun
    begin, bind = cached_run.__init__, cached_run.bind

    def begin_run(run, *given):
        begin(run, *given)
        seen.append((run.cache, [0]))

    def bind_run(run, options):
        (kept,) = (kept for cache, kept in seen if cache is run.cache)
        kept[0] = sum(state.residual.nbytes for state in run.cache.states.values())
        return bind(run, options)

    monkeypatch.setattr(cached_run, "__init__", begin_run)
    monkeypatch.setattr(cached_run, "bind", bind_run)
    return seen


def ksampler(model, texts, steps=12, cfg=4.0, sampler="euler", batch=1, frames=3):
    import nodes

    latent = {"samples": torch.zeros(batch, 16, frames, 4, 4)}
    (out,) = nodes.common_ksampler(model, 1, steps, cfg, sampler, "simple", *texts, latent)
    return out["samples"]


def sample(model, texts, **changes):
    given = {"num_frames": 25, "window": 17, "width": 32, "height": 32, "overlap": 9, "steps": 8}
    plan = module("skyreels_model.plan.film_plan").FilmPlan(
        **{**given, "history": "latents", **changes}
    )
    guidance = module("skyreels_model.plan.guidance").film_guidance(4.0, "")
    make = module("nodes.host.film.sampling").sample_film
    return make(model, *texts, plan, None, 1, guidance, "unipc")


def film(model, texts, **changes):
    latent, _ = sample(model, texts, **changes)
    return latent["samples"]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def apart(monkeypatch, model):
    """Prompts one by one, as where memory allows no more."""
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_given, **_named: 1e30)
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda *_given, **_named: None)


@pytest.mark.parametrize("make", [ksampler, film])
def test_it_skips_and_every_run_begins_afresh(model, cached, texts, runs, make):
    with_cache = cached()
    plain, first, second = (make(m, texts) for m in (model, with_cache, with_cache))
    assert 1e-4 < relative(first, plain) < 0.5
    assert torch.equal(first, second)
    windows = len(runs) // 2
    assert windows == (1 if make is ksampler else 2)
    for cache, _ in runs:
        assert 0.1 < cache.skipped / (cache.skipped + cache.computed) < 0.75
        assert not cache.states


def test_nothing_is_left_of_a_cancelled_run(cached, texts, monkeypatch):
    import comfy.model_management

    module_, with_cache = module("nodes.host.sockets.tea_cache"), cached()
    fresh, kept, bind = ksampler(with_cache, texts), [], module_.CachedRun.bind

    def cancel(run, options):
        kept.append(weakref.ref(run.cache))
        if len(kept) == 6:
            raise comfy.model_management.InterruptProcessingException
        return bind(run, options)

    monkeypatch.setattr(module_.CachedRun, "bind", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ksampler(with_cache, texts)
    monkeypatch.undo()
    gc.collect()
    assert kept[0]() is None
    assert torch.equal(ksampler(with_cache, texts), fresh)


@pytest.mark.parametrize("make", [ksampler, film])
@pytest.mark.parametrize("with_cache", [False, True])
def test_prompts_in_one_batch_or_apart_make_the_same(
    request, model, cached, texts, runs, make, with_cache
):
    chosen = cached() if with_cache else model
    together = make(chosen, texts)
    counts = [cache.computed + cache.skipped for cache, _ in runs]
    runs.clear()
    request.getfixturevalue("apart")
    assert relative(make(chosen, texts), together) < 1e-5
    assert [cache.computed + cache.skipped for cache, _ in runs] == [2 * n for n in counts]


@pytest.mark.parametrize(("cfg", "batch"), [(4.0, 1), (4.0, 2)])
def test_the_host_is_told_what_it_keeps(model, cached, texts, runs, monkeypatch, cfg, batch):
    asked, required = [], type(model.model).memory_required

    def spy(self, *given, **named):
        asked.append(required(self, *given, **named))
        return asked[-1]

    monkeypatch.setattr(type(model.model), "memory_required", spy)
    ksampler(model, texts, cfg=cfg, batch=batch)
    without, _ = asked.copy(), asked.clear()
    ksampler(cached(), texts, cfg=cfg, batch=batch)
    assert {told - plain for told, plain in zip(asked, without, strict=True)} == set(runs[0][1])


def test_a_film_is_told_no_prompt_twice(cached, texts, runs, model):
    film(cached(), texts)
    assert model.model.residuals == 2
    film(model, texts)
    assert model.model.residuals == 0


def test_a_share_of_the_steps_is_always_computed(cached, texts, runs):
    """Told by the noise level: a solver that asks twice a step does not shift it."""
    for sampler, calls in (("euler", 12), ("heun", 23)):
        ksampler(cached(1.0, start=0.5, end=0.25), texts, sampler=sampler)
        cache, _ = runs.pop()
        assert cache.computed + cache.skipped == calls
        assert cache.skipped <= calls // 4 + 1
    ksampler(cached(1.0, start=1.0), texts)
    assert runs.pop()[0].skipped == 0


@pytest.mark.parametrize("make", [ksampler, film])
@pytest.mark.parametrize(("threshold", "words"), [(0.001, "raise its"), (1.0, "lower its")])
def test_a_threshold_that_skips_nothing_or_most_is_told_once(
    cached, texts, monkeypatch, threshold, words, make
):
    told, notice = [], module("nodes.host.notice")
    monkeypatch.setattr(notice, "warn", told.append)
    monkeypatch.setattr(notice, "show", lambda text: None)
    monkeypatch.setattr(module("nodes.host.sockets.tea_cache"), "MOSTLY", 0.3)
    make(cached(threshold), texts, steps=12)
    monkeypatch.undo()
    assert [text for text in told if "TeaCache" in text] == told[-1:]
    assert words in told[-1]


def test_the_share_is_told_while_a_film_is_made_and_in_its_report(cached, texts, runs, monkeypatch):
    told = []
    monkeypatch.setattr(module("nodes.host.notice"), "show", told.append)
    _, report = sample(cached(), texts)
    skipped, computed = (sum(getattr(run, n) for run, _ in runs) for n in ("skipped", "computed"))
    share = f"{skipped / (skipped + computed):.0%}"
    assert len(runs) == 2 and f"(toy): {share} of the model's work skipped" in report
    assert any(f"({share} skipped so far)" in text for text in told)


def test_a_prompt_with_skipped_layers_has_a_state_of_its_own(cached, model):
    cache = module("nodes.host.sockets.tea_cache")
    settings = cached().model_options["transformer_options"][cache.SETTINGS]
    config = model.model.diffusion_model.config
    run = cache.CachedRun(settings, config, 1024, torch.linspace(1, 0, 5))
    options = {"uuids": ["a"], "sigmas": torch.ones(1)}
    skipping = {**options, "patches_replace": {"dit": {("double_block", 1): print}}}
    assert run.bind(options).keys != run.bind(skipping).keys
    assert cache.read_cache({**options, cache.RUN: run}).keys == run.bind(options).keys
    # A node that calls the model by itself says of no prompt.
    assert cache.read_cache({cache.RUN: run}) is None


def test_frames_at_different_levels_are_refused_before_sampling(cached, texts, runs):
    with pytest.raises(ValueError, match=r"ar_step is 2.*set mode to automatic"):
        film(cached(), texts, ar_step=2)
    assert not runs


def test_the_node_has_it(model, monkeypatch):
    """With the settings of the node, and the rule of the model; a threshold of 0 is off."""
    cache, rules = (module(f"nodes.host.{name}") for name in ("film.cache", "sockets.tea_cache"))
    published = module("skyreels_model.cache.published")
    rule = published.Rule("toy", (1.0, 0.0), False, 1, 1)
    monkeypatch.setattr(rules, "find_rule", lambda config, pixels, projected: rule)
    node = module("nodes.tea_cache").SkyReelsV2TeaCache
    for mode, projected in (("published", True), ("published_without_ret_steps", False)):
        (made,) = node.execute(model, mode, 0.3, 0.1, 0.2).result
        found = made.model_options["transformer_options"][rules.SETTINGS]
        assert found == rules.PublishedCache(0.3, 0.1, 0.2, projected)
        for other in ("automatic", "published"):
            with pytest.raises(ValueError, match="TeaCache already"):
                node.execute(made, other, 0.3, 0.0, 0.0)
    assert node.execute(model, "published", 0.0, 0.0, 0.0).result == (model,)
    automatic = cache.add_cache(model, module("skyreels_model.cache.settings").CacheSettings())
    with pytest.raises(ValueError, match="TeaCache already"):
        node.execute(automatic, "published", 0.3, 0.0, 0.0)


def test_what_cannot_have_it_is_refused(look, cached, model, texts, without_fps):
    cache = module("nodes.host.sockets.tea_cache")
    with pytest.raises(ValueError, match=r"the model is '\d+ blocks of width 128'.*fitted to"):
        cache.use_published(model, cache.PublishedCache(0.1))
    prompt = {"1": graphs.node("UNETLoader", unet_name=without_fps, weight_dtype="default")}
    (cores,) = look(prompt, model=["1", 0])
    with pytest.raises(ValueError, match="WanModel from another loader.*mode to automatic"):
        cache.use_published(cores, cache.PublishedCache(0.1))
    windowed = cached()
    windowed.model_options["context_handler"] = object()
    with pytest.raises(ValueError, match="context windows"):
        ksampler(windowed, texts)
    with pytest.raises(ValueError, match="threshold is 2"):
        cache.PublishedCache(2.0)


def test_the_hosts_cache_is_warned_of_where_frames_differ(look, monkeypatch):
    checks = module("nodes.host.film.checks")
    plan = module("skyreels_model.plan.film_plan").FilmPlan(ar_step=5)
    easy = {"model": ["1", 0], "reuse_threshold": 0.2, "start_percent": 0.15}
    prompt = graphs.film()
    prompt["30"] = graphs.node("EasyCache", end_percent=0.95, verbose=False, **easy)
    (model,) = look(prompt, model=["30", 0])
    told = []
    checks._check_cache(model, plan, told.append)
    assert len(told) == 1 and "EasyCache" in told[0] and "mode automatic" in told[0]


def test_a_compiled_model_is_compiled_once_for_all_runs(host):
    """What is decided from call to call stays out of the graphs."""
    from torch._dynamo.utils import counters

    kind, _ = module("nodes.host.sockets.tea_cache").outside_graphs()
    cache = module("skyreels_model.cache.published")
    sizes = {"dim": 32, "ffn_dim": 32, "num_heads": 1, "num_layers": 1, "text_dim": 8}
    config = module("skyreels_model.model.config").ModelConfig(**sizes)
    transformer = module("skyreels_model.model.network").SkyReelsModel(config)
    compiled = torch.compile(transformer, backend="eager")
    x, text, graphs_made = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 512, 8), []
    counters.clear()
    for _ in range(3):
        run = cache.TeaCache(cache.Rule("toy", (1.0, 0.0), False, 1, 1), 1.0)
        for t in (900.0, 899.0, 10.0, 9.0):
            with torch.no_grad():
                given = {"cache": kind(run, ["prompt"], False)}
                compiled(x, torch.tensor([t]), text, **given)
        assert (run.computed, run.skipped) == (2, 2)
        graphs_made.append(counters["stats"]["unique_graphs"])
    assert graphs_made[0] == graphs_made[-1]

"""TeaCache as published: the authors' runs without their defects, and one state for each prompt."""

import dataclasses

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.cache import published
from skyreels_model.cache.published import COEFFICIENTS, Rule, TeaCache, always_computes, find_rule
from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, generate
from toy.random_weights import PUBLISHED

# The authors give the number of steps where their code wants that of model calls.
MISCOUNTED = ("teacache_linear_noret", "teacache_t13b_noret", "teacache_t13b_ret")
ODD = "teacache_linear_odd_steps"
COUNTED = "teacache_linear_intended_count"
PROMPTS = ("prompt", "negative")
LINEAR = Rule("a test", (1.0, 0.0), False, 1, 1)


class StoredNoise:
    def __init__(self, data):
        self.data = data

    def initial(self, window, shape):
        return self.data["noise"][None]


class GoldenRun:
    """A golden film by our loop, with our cache in its forwards.

    choose(call, prompt, film) -> the key of the call's state, and whether it is forced. ran: which
    calls ran the blocks.
    """

    def __init__(self, name, choose):
        case, self.data = golden_data.case(name), golden_data.tensors(name)
        self.given, self.choose, self.ran = case["parameters"], choose, []
        p = self.given
        rule = Rule(name, tuple(p["coefficients"]), p["use_ret_steps"], 0, 0)
        self.cache, self.model = TeaCache(rule, p["teacache_thresh"]), models.dit(case)
        self.fps = torch.tensor([p["fps"]]) if "fps" in p else None
        plan = FilmPlan(
            num_frames=p["num_frames"], window=p["num_frames"], width=p["width"],
            height=p["height"], steps=p["steps"], shift=p["shift"], overlap=1,
        )  # fmt: skip
        self.film = Film(plan, "unipc_as_shipped")
        list(generate(self.guided, plan, StoredNoise(self.data), film=self.film))

    def guided(self, x, t):
        cond, uncond = (self.call(x, t, prompt) for prompt in PROMPTS)
        return uncond + self.given["guidance"] * (cond - uncond)

    def call(self, x, t, prompt):
        key, forced = self.choose(len(self.ran), prompt, self.film)
        text = golden_data.padded_text(self.data[f"{prompt}_embeds_rows"])
        before = self.cache.computed
        made = self.model(x, t, text, fps=self.fps, cache=self.cache.bind([key], forced))
        self.ran.append(self.cache.computed - before)
        return made

    @property
    def is_the_authors(self):
        same = self.ran == self.data["computed"].tolist()
        final = self.film.finished[0][0]
        return same and golden_data.relative_l2(final, self.data["final_latents"]) < 1e-4


def as_shipped(given):
    """The authors' counter: of calls, back to 0 after as many as there are steps."""

    def choose(call, prompt, film):
        count = call % given["num_steps"]
        return count % 2, count < given["ret_steps"] or count >= given["cutoff_steps"]

    return choose


def corrected(first, last):
    def choose(call, prompt, film):
        levels = film.plan.schedule().sigmas.tolist()
        return prompt, always_computes(film.sigma, levels, first, last)

    return choose


@pytest.mark.parametrize("name", [*MISCOUNTED, ODD])
def test_with_the_authors_counter_it_is_their_film(name, monkeypatch):
    """So what differs without it is what is corrected: decisions, distances and sums are theirs."""
    changes, measure = [], published.measure_change

    def spy(*given):
        changes.append(measure(*given))
        return changes[-1]

    monkeypatch.setattr(published, "measure_change", spy)
    run = GoldenRun(name, as_shipped(golden_data.case(name)["parameters"]))
    assert run.is_the_authors
    free = run.data["forced"] == 0
    assert torch.allclose(torch.tensor(changes), run.data["rel_l1"][free], rtol=1e-3)


def test_steps_are_told_by_their_level_and_not_by_a_count_of_calls():
    """With the number of calls they force the first step alone: the last are twice too far off."""
    assert GoldenRun(COUNTED, corrected(1, 0)).is_the_authors
    given = golden_data.case(COUNTED)["parameters"]
    assert given["cutoff_steps"] > given["num_steps"]
    assert GoldenRun(COUNTED, corrected(1, 1)).ran[-2:] == [1, 1]


@pytest.mark.parametrize("name", [*MISCOUNTED, ODD])
def test_no_step_in_the_middle_is_forced(name):
    """Their counter begins anew half way, and never comes to the last steps."""
    given = golden_data.case(name)["parameters"]
    first, last = given["ret_steps"] // 2, 0 if given["use_ret_steps"] else 1
    run = GoldenRun(name, corrected(first, last))
    middle = slice(2 * first, 2 * (given["steps"] - last))
    skipped = [not ran for ran in run.ran[middle]]
    assert all(run.ran[: middle.start]) and all(run.ran[middle.stop :]) and any(skipped)
    wrapped = run.data["forced"][given["num_steps"] : given["num_steps"] + given["ret_steps"]]
    assert wrapped.all()


def test_an_odd_number_of_steps_exchanges_no_states():
    """The authors' prompt and negative prompt change places half way: here both decide the same."""
    run = GoldenRun(ODD, corrected(1, 1))
    assert run.ran[::2] == run.ran[1::2]
    difference = golden_data.relative_l2(
        run.film.finished[0][0], run.data["final_latents_no_cache"]
    )
    assert difference < 0.2 < golden_data.case(ODD)["measured"]["rel_effect_on_latents"]


SMALL = ModelConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, text_dim=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SkyReelsModel(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture
def call(model):
    """`call(cache, keys, t, x, rows)`: a forward with a text of its own for each key."""
    texts = {key: torch.randn(1, 512, 32) for key in (*PROMPTS, "third")}

    def run(cache, keys, t, x, rows=512, forced=False, frames=None):
        text = torch.cat([texts[key][:, :rows] for key in keys])
        levels = torch.full((len(keys), x.shape[2]), float(t)) if frames is None else frames
        with torch.no_grad():
            bound = cache.bind(keys, forced) if cache else None
            return model(x.repeat(len(keys), 1, 1, 1, 1), levels, text, cache=bound)

    return run


def latents(frames=3, side=4, seed=1):
    return torch.randn(1, 16, frames, side, side, generator=torch.Generator().manual_seed(seed))


def test_prompts_in_one_batch_are_as_prompts_apart(call):
    together, apart = TeaCache(LINEAR, 1.5), TeaCache(LINEAR, 1.5)
    for step, t in enumerate((999, 980, 950, 900, 800, 600, 500)):
        x = latents(seed=step)
        both = call(together, PROMPTS, t, x)
        each = torch.cat([call(apart, [prompt], t, x) for prompt in PROMPTS])
        assert torch.allclose(both, each, atol=1e-6)
    assert 0 < together.skipped < 6 and apart.skipped == 2 * together.skipped


def test_a_batch_may_change_between_calls(call):
    """Prompts come together and apart, one leaves and returns, and a new one is first computed."""
    cache, x = TeaCache(LINEAR, 3.0), latents()
    for keys, ran in (
        (PROMPTS, True), (PROMPTS, False), (PROMPTS[:1], False), (PROMPTS[1:], False),
        (PROMPTS[::-1], False), ((*PROMPTS, "third"), True), (("third", "prompt"), False),
    ):  # fmt: skip
        before = cache.computed
        out = call(cache, keys, 500, x)
        assert (cache.computed > before) == ran, keys
        assert torch.allclose(out, call(None, keys, 500, x), atol=1e-6), keys


@pytest.mark.parametrize("change", [{"rows": 77}, {"x": latents(side=8)}, {"x": latents(frames=2)}])
def test_texts_and_sizes_may_change_between_calls(call, change):
    """A text of another length has the same stream; one of another size is computed afresh."""
    cache = TeaCache(LINEAR, 3.0)
    call(cache, PROMPTS, 500, latents())
    given = {"x": latents(), **change}
    fresh = given["x"].shape != latents().shape
    out = call(cache, PROMPTS, 500, **given)
    assert (cache.skipped == 0) == fresh
    assert not fresh or torch.equal(out, call(None, PROMPTS, 500, **given))


def test_a_skipped_forward_adds_what_the_blocks_added(call, model):
    """In the stream's precision, to the new latents' own stream; the head sees the new time."""
    cache, x, t = TeaCache(LINEAR, 3.0), latents(), torch.tensor([[400.0]])
    call(cache, ["prompt"], 500, latents(seed=2))
    kept = cache.states["prompt"].residual.clone()
    assert kept.dtype == torch.float32
    out = call(cache, ["prompt"], 400, x)
    with torch.no_grad():
        stream = model.patch_embedding(x).flatten(2).mT + kept
        e, _ = model.embed_time(t, None)
        meant = model._unpatchify(model.head(stream, e), (3, 2, 2))
    assert torch.allclose(out, meant, atol=1e-6)
    assert torch.equal(cache.states["prompt"].residual, kept)


def test_frames_that_rest_do_not_thin_out_the_change(call):
    """The authors' mean over all tokens is small where one frame moves: here that one decides."""
    together, one = TeaCache(LINEAR, 1.5), TeaCache(LINEAR, 1.5)
    for cache, rest in ((together, []), (one, [0.0] * 8)):
        for t in (900.0, 890.0, 880.0, 870.0, 860.0, 850.0):
            frames = torch.tensor([[t, *rest]])
            call(cache, ["prompt"], t, latents(frames=1 + len(rest)), frames=frames)
    assert (together.computed, together.skipped) == (one.computed, one.skipped)
    assert one.computed > 1 < one.skipped


def test_embeddings_stay_compact(call):
    """The state is one residual for each prompt, and a row for each frame."""
    cache = TeaCache(dataclasses.replace(LINEAR, projected=True), 0.2)
    call(cache, PROMPTS, 500, latents(frames=5, side=16))
    for state in cache.states.values():
        assert state.time.shape == (1, 5, 6, SMALL.dim)
        assert state.residual.shape == (1, 5 * 8 * 8, SMALL.dim)


def test_threshold_0_computes_everything(call):
    """Though polynomials fall below 0."""
    cache, x = TeaCache(Rule("below", (-1.0,), False, 0, 0), 0.0), latents()
    for t in (900, 899, 898):
        assert torch.equal(call(cache, PROMPTS, t, x), call(None, PROMPTS, t, x))
    assert cache.skipped == 0


def test_a_forward_that_fails_leaves_no_state(model):
    cache, x = TeaCache(LINEAR, 3.0), latents()

    def attend(*_given):
        raise InterruptedError

    text, t = torch.randn(1, 512, 32), torch.tensor([500.0])
    with torch.no_grad():
        model(x, t, text, cache=cache.bind(["prompt"]))
        assert cache.states
        with pytest.raises(InterruptedError):
            model(x, t, text, attend=attend, cache=cache.bind(["prompt"], forced=True))
    assert not cache.states


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_has_its_rule(name):
    config = PUBLISHED[name]
    for height, width, trained in ((544, 960, "540P"), (720, 1280, "720P")):
        for projected in (False, True):
            rule = find_rule(config, height * width, projected)
            size = "1.3B" if config.dim == 1536 else "14B"
            meant = f"I2V {trained}" if config.model_type == "i2v" else f"T2V {size}"
            assert rule.model == meant and rule.coefficients == COEFFICIENTS[meant][projected]
            assert (rule.first, rule.last) == ((5, 0) if projected else (1, 1))


def test_a_model_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"the model is '2 blocks of width 64'; .*fitted to"):
        find_rule(SMALL, 544 * 960)


@pytest.mark.parametrize(
    ("level", "first", "last", "always"),
    [(1.0, 1, 1, True), (0.9, 1, 1, False), (0.9, 2, 1, True), (0.6, 1, 1, False),
     (0.3, 1, 1, True), (0.3, 1, 0, False), (1.0, 0, 0, False), (0.6, 3, 1, True)],
)  # fmt: skip
def test_which_steps_are_always_computed(level, first, last, always):
    assert always_computes(level, (1.0, 0.9, 0.6, 0.3, 0.0), first, last) == always

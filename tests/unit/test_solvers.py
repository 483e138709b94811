"""The solvers against the reference's trajectories and against mathematics."""

import dataclasses
import math

import golden_data
import pytest
import torch

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.summary import describe_plan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.schedule import custom_schedule, flow_schedule
from skyreels_model.solvers import LCM, SOLVERS, DPMSolver2M, Euler, UniPC

CASES = golden_data.case("unipc_trajectories")["parameters"]["cases"]


def run(solver, x, velocity_at, steps, noise_at=lambda k: None):
    """Step all frames of x (1, C, F, H, W) together; velocity_at(k, x) gives the field."""
    state = solver.start(x)
    update = torch.ones(x.shape[2], dtype=torch.bool)
    samples, corrected = [], []
    for k in range(steps):
        index = torch.full((x.shape[2],), k)
        x = solver.step(state, x, velocity_at(k, x), index, update, noise_at(k))
        samples.append(x)
        corrected.append(state.history.get("last", x))
    return torch.stack(samples), torch.stack(corrected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["key"])
def test_unipc_is_the_references(case):
    data = golden_data.tensors("unipc_trajectories")
    key = case["key"]
    schedule = flow_schedule(case["steps"], case["shift"])

    def velocity_at(k, x):
        if key.startswith("sto"):
            return data[f"{key}.v"][k]
        return (
            torch.einsum("ij,bj...->bi...", data[f"{key}.A"], x)
            + schedule.sigmas[k] * data[f"{key}.b"]
        )

    samples, corrected = run(UniPC(schedule.sigmas), data[f"{key}.x0"], velocity_at, case["steps"])
    for k in range(case["steps"]):
        assert golden_data.relative_l2(samples[k], data[f"{key}.xs"][k]) <= 1e-4
        if f"{key}.last_sample" in data:
            assert golden_data.relative_l2(corrected[k], data[f"{key}.last_sample"][k]) <= 1e-4


def test_unipc_stays_near_the_shipped_bf16_latents():
    """Ours are float32 on purpose; the reference keeps DF latents in bf16 between steps."""
    data = golden_data.tensors("unipc_bf16_latents")
    schedule = flow_schedule(10, 8.0)
    samples, _ = run(UniPC(schedule.sigmas), data["x0"][None], lambda k, x: data["v"][k][None], 10)
    assert golden_data.relative_l2(samples[-1][0], data["xs"][-1]) <= 1e-2


@pytest.mark.parametrize("solver_type", [UniPC, Euler, DPMSolver2M, LCM])
def test_frames_at_different_steps_do_not_touch_each_other(solver_type):
    """A staircase of five frames in one call equals each frame stepped alone, bit for bit."""
    torch.manual_seed(0)
    steps, frames = 6, 5
    sigmas = flow_schedule(steps, 5.0).sigmas
    x = torch.randn(1, 4, frames, 2, 2)
    field, noise = torch.randn(2, steps, 1, 4, frames, 2, 2)
    alone = []
    for f in range(frames):
        samples, _ = run(
            solver_type(sigmas),
            x[:, :, f : f + 1],
            lambda k, _, f=f: field[k][:, :, f : f + 1],
            steps,
            lambda k, f=f: noise[k][:, :, f : f + 1],
        )
        alone.append(samples[-1])
    solver, state = solver_type(sigmas), solver_type(sigmas).start(x)
    for row in range(steps + frames - 1):
        k = row - torch.arange(frames)
        update = (k >= 0) & (k < steps)
        k = k.clamp(0, steps - 1)
        velocity, drawn = (
            torch.stack([tensor[k[f], :, :, f] for f in range(frames)], dim=2)
            for tensor in (field, noise)
        )
        before, x = x, solver.step(state, x, velocity, k, update, drawn)
        assert torch.equal(x[:, :, ~update], before[:, :, ~update])
    assert torch.equal(x, torch.cat(alone, dim=2))


MEAN, STD = 0.8, 0.5


def deviation(sigma):
    return math.hypot((1 - sigma) * STD, sigma)


def on_the_flow(sigma):
    """Where the exact flow of Gaussian data takes one point, by its noise level."""
    return (1 - sigma) * MEAN + deviation(sigma) * 1.3


def error(solver_type, sigmas, steps):
    """How far `steps` steps along `sigmas` end from the exact flow."""
    levels = sigmas.tolist()

    def velocity_at(k, x):
        s = levels[k]
        drift = (s - (1 - s) * STD**2) / deviation(s) ** 2
        return (x - (1 - s) * MEAN) * drift - MEAN

    x = torch.full((1, 1, 1, 1, 1), on_the_flow(levels[0]), dtype=torch.float64)
    samples, _ = run(solver_type(sigmas), x, velocity_at, steps)
    return abs(float(samples[-1]) - on_the_flow(levels[steps]))


def slope(errors, numbers):
    """Of log error against log step length, by least squares."""
    x, y = -torch.tensor(numbers).double().log(), torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize(("solver_type", "order"), [(Euler, 1), (DPMSolver2M, 2), (UniPC, 3)])
def test_order_of_convergence(solver_type, order):
    """In even steps of the log-SNR; UniPC's corrector adds an order to its predictor's 2."""
    numbers, errors = (20, 40, 80, 160), []
    for number in numbers:
        between = torch.linspace(-4, 4, number + 1, dtype=torch.float64)
        sigmas = torch.cat([torch.sigmoid(-between), torch.zeros(1)]).float()
        errors.append(error(solver_type, sigmas, number))
    assert slope(errors, numbers) == pytest.approx(order, abs=0.1)


def aliased(sigmas):
    return UniPC(sigmas, as_shipped=True)


@pytest.mark.parametrize(
    ("solver_type", "order"), [(Euler, 1), (DPMSolver2M, 2), (UniPC, 2), (aliased, 1)]
)
def test_order_of_convergence_down_to_the_picture(solver_type, order):
    """Over a whole schedule, whose last steps are long in the log-SNR and are of order 1."""
    numbers = (160, 320, 640)
    errors = [error(solver_type, flow_schedule(n, 1.0).sigmas, n) for n in numbers]
    assert slope(errors, numbers) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("solver_type", [Euler, DPMSolver2M, UniPC])
def test_a_schedule_from_sigma_1_is_as_exact_as_one_from_just_below(solver_type):
    """Where the log-SNR is infinite: the first step is Euler's, the error the same within 2 %."""
    steps = 40
    sigmas = custom_schedule(torch.linspace(1, 0, steps + 1)).sigmas
    x, v = torch.randn(2, 1, 4, 3, 2, 2)
    first, _ = run(solver_type(sigmas), x, lambda k, _: v, 1)
    assert torch.allclose(first[0], x + (sigmas[1] - 1) * v, atol=1e-6)
    below = error(solver_type, flow_schedule(steps, 1.0).sigmas, steps)
    assert error(solver_type, sigmas, steps) == pytest.approx(below, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("solver_type", [Euler, DPMSolver2M, UniPC])
def test_fewest_steps_from_sigma_1_make_a_point_of_data(solver_type, steps):
    """Data of one point: its estimate is exact at every level, so is every solver's end."""
    sigmas = custom_schedule(torch.linspace(1, 0, steps + 1)).sigmas
    x, point = torch.randn(2, 1, 4, 2, 2, 2)
    samples, _ = run(solver_type(sigmas), x, lambda k, x: (x - point) / sigmas[k], steps)
    assert torch.allclose(samples[-1], point, atol=1e-5)


def test_dpm_solver_is_the_one_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a test dependency")
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=8.0,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(8)
    torch.manual_seed(0)
    field, x = torch.randn(8, 1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    schedule = custom_schedule(theirs.sigmas)
    samples, _ = run(DPMSolver2M(schedule.sigmas), x, lambda k, _: field[k], 8)
    for k, t in enumerate(theirs.timesteps):
        x = theirs.step(field[k], t, x).prev_sample
        assert golden_data.relative_l2(samples[k], x) <= 1e-5


def test_lcm_is_the_one_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a test dependency")
    theirs = diffusers.FlowMatchLCMScheduler(shift=5.0)
    theirs.set_timesteps(4)
    torch.manual_seed(0)
    field, x = torch.randn(4, 1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(x.shape, generator=generator) for _ in range(4)]
    schedule = custom_schedule(theirs.sigmas)
    samples, _ = run(LCM(schedule.sigmas), x, lambda k, _: field[k], 4, noise.__getitem__)
    generator.manual_seed(1)
    for k, t in enumerate(theirs.timesteps):
        x = theirs.step(field[k], t, x, generator=generator).prev_sample
        assert golden_data.relative_l2(samples[k], x) <= 1e-5
    assert torch.equal(samples[-1], samples[-2] - schedule.sigmas[3] * field[3])


def made(num_frames, solver="lcm", seed=1, **numbers):
    """The latents of a film of one window, of a field that sees each frame alone."""
    plan = FilmPlan(num_frames=num_frames, width=32, height=32, steps=4, **numbers)
    film = Film(plan, solver)
    for _ in generate(lambda x, t: torch.sin(3 * x), plan, SeededNoise(seed), film=film):
        pass
    return film.finished[0]


@pytest.mark.parametrize("ar_step", [0, 2])
def test_lcm_draws_the_same_noise_in_a_film_of_any_length(ar_step):
    short, long = made(17, ar_step=ar_step), made(33, ar_step=ar_step)
    assert torch.equal(long[:, :, :5], short)
    assert torch.equal(made(17, ar_step=ar_step), short)
    assert not torch.allclose(made(17, ar_step=ar_step, seed=2), short)


def test_every_step_of_lcm_draws_noise_of_its_own():
    source, shape = SeededNoise(1), (1, 16, 3, 4, 4)
    drawn = [source.renoise(w, r, shape) for w in range(2) for r in range(2)]
    drawn += [source.initial(0, shape), source.prefix(0, 0, shape)]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:i])


@pytest.mark.parametrize("solver", SOLVERS)
def test_given_sigmas_make_the_film_of_the_schedule_that_has_them(solver):
    """The schedule's own sigmas, given as numbers, with steps and shift that are of another."""
    sigmas = flow_schedule(4, 5.0).sigmas.tolist()
    usual = made(17, solver, shift=5.0)
    given = made(17, solver, shift=2.0, sigmas=tuple(sigmas))
    assert usual.isfinite().all() and torch.equal(given, usual)
    assert not torch.equal(made(17, solver, shift=2.0), usual)


def test_given_sigmas_replace_steps_and_shift():
    plan = FilmPlan(num_frames=17, steps=30, sigmas=(1.0, 0.9, 0.5, 0.0))
    schedule = plan.schedule()
    assert schedule.timesteps.tolist() == [1000, 900, 500]
    assert torch.equal(schedule.sigmas, torch.tensor([1, 0.9, 0.5, 0]))
    assert plan.steps == schedule.steps == 3 and plan.total_rows() == 3
    assert "3 steps, sigmas as given" in describe_plan(plan)
    assert "shift" not in describe_plan(plan)
    assert dataclasses.replace(plan, fps=16).sigmas == plan.sigmas


def test_timesteps_of_given_sigmas_are_the_schedules():
    for steps in (1, 4, 30, 50):
        for shift in (1.0, 3.0, 5.0, 8.0):
            schedule = flow_schedule(steps, shift)
            given = custom_schedule(schedule.sigmas)
            assert torch.equal(given.sigmas, schedule.sigmas)
            assert torch.equal(given.timesteps, schedule.timesteps), (steps, shift)


@pytest.mark.parametrize(
    ("sigmas", "says"),
    [
        ((0.0,), "sigmas has 1 noise levels; it must have at least 2"),
        ((14.6, 1.0, 0.0), "sigmas begins at 14.6; .* 0.9 to 1; nearest: 1"),
        ((0.3, 0.0), "sigmas begins at 0.3; .* 0.9 to 1; nearest: 0.9"),
        ((math.nan, 0.0), "sigmas begins at nan"),
        ((1.0, 0.5), "sigmas ends at 0.5; it must end at 0"),
        ((1.0, 0.5, 0.5, 0.0), "sigmas has 0.5 at place 3, after 0.5"),
        ((1.0, 0.3, 0.5, 0.0), "sigmas has 0.5 at place 3, after 0.3"),
        ((1.0, -0.1, 0.0), "sigmas has 0 at place 3, after -0.1"),
        ((1.0, math.nan, 0.0), "sigmas has nan at place 2, after 1"),
    ],
)
def test_sigmas_that_are_none_are_refused(sigmas, says):
    with pytest.raises(ValueError, match=says):
        FilmPlan(sigmas=sigmas)


def test_no_sigmas_at_all_are_refused():
    with pytest.raises(ValueError, match="sigmas has 0 noise levels"):
        custom_schedule(torch.empty(0))


def test_last_step_lands_on_the_estimate():
    sigmas = flow_schedule(4, 8.0).sigmas
    solver = UniPC(sigmas)
    x, v = torch.randn(1, 4, 1, 2, 2), torch.randn(1, 4, 1, 2, 2)
    state = solver.start(x)
    out = solver.step(state, x, v, torch.tensor([3]), torch.tensor([True]))
    assert torch.allclose(out, x - sigmas[3] * v, atol=1e-6)

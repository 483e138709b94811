"""The solvers against the reference's trajectories and against mathematics."""

import golden_data
import pytest
import torch

from skyreels_model.schedule import flow_schedule
from skyreels_model.solvers import Euler, UniPC

CASES = golden_data.case("unipc_trajectories")["parameters"]["cases"]


def run(solver, x, velocity_at, steps):
    """Step all frames of x (1, C, F, H, W) together; velocity_at(k, x) gives the field."""
    state = solver.start(x)
    update = torch.ones(x.shape[2], dtype=torch.bool)
    samples, corrected = [], []
    for k in range(steps):
        index = torch.full((x.shape[2],), k)
        x = solver.step(state, x, velocity_at(k, x), index, update)
        samples.append(x)
        corrected.append(state.history["last"] if state.history else x)
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


@pytest.mark.parametrize("solver_type", [UniPC, Euler])
def test_frames_at_different_steps_do_not_touch_each_other(solver_type):
    """A staircase of five frames in one call equals each frame stepped alone, bit for bit."""
    torch.manual_seed(0)
    steps, frames = 6, 5
    sigmas = flow_schedule(steps, 5.0).sigmas
    x = torch.randn(1, 4, frames, 2, 2)
    field = torch.randn(steps, 1, 4, frames, 2, 2)
    alone = []
    for f in range(frames):
        samples, _ = run(
            solver_type(sigmas),
            x[:, :, f : f + 1],
            lambda k, _, f=f: field[k][:, :, f : f + 1],
            steps,
        )
        alone.append(samples[-1])
    solver, state = solver_type(sigmas), solver_type(sigmas).start(x)
    for row in range(steps + frames - 1):
        k = row - torch.arange(frames)
        update = (k >= 0) & (k < steps)
        k = k.clamp(0, steps - 1)
        velocity = torch.stack([field[k[f], :, :, f] for f in range(frames)], dim=2)
        x = solver.step(state, x, velocity, k, update)
    assert torch.equal(x, torch.cat(alone, dim=2))


def aliased(sigmas):
    return UniPC(sigmas, as_shipped=True)


@pytest.mark.parametrize(("solver_type", "order"), [(Euler, 1), (UniPC, 2), (aliased, 1)])
def test_order_of_convergence(solver_type, order):
    """On v = (x - mean)*c(sigma), the exact flow of Gaussian data, the error falls as h^order."""
    std = 0.5

    def error(steps):
        sigmas = flow_schedule(steps, 1.0).sigmas

        def velocity_at(k, x):
            s = float(sigmas[k])
            variance = (1 - s) ** 2 * std**2 + s**2
            return x * (s - (1 - s) * std**2) / variance

        x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        solver = solver_type(sigmas)
        samples, _ = run(solver, x, velocity_at, steps)
        start = float(sigmas[0])
        exact = std / ((1 - start) ** 2 * std**2 + start**2) ** 0.5
        return abs(float(samples[-1]) - exact)

    slope = torch.log2(torch.tensor(error(40) / error(80)))
    assert order - 0.35 < slope < order + 1.2


def test_last_step_lands_on_the_estimate():
    sigmas = flow_schedule(4, 8.0).sigmas
    solver = UniPC(sigmas)
    x, v = torch.randn(1, 4, 1, 2, 2), torch.randn(1, 4, 1, 2, 2)
    state = solver.start(x)
    out = solver.step(state, x, v, torch.tensor([3]), torch.tensor([True]))
    assert torch.allclose(out, x - sigmas[3] * v, atol=1e-6)

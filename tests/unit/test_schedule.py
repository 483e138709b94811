"""The flow schedule and the timestep matrix against the reference's tables."""

import itertools
import json

import golden_data
import numpy as np
import pytest
import torch

from skyreels_model.schedule import flow_schedule, timestep_matrix, window_matrix, window_rows

SETS = json.loads((golden_data.FOLDER / "timestep_matrix.json").read_text())


def matrix_of(entry: dict):
    template = SETS["step_templates"][f"{entry['steps']},{entry['shift']:g}"]
    return timestep_matrix(
        entry["num_frames"],
        torch.tensor(template),
        entry["base_num_frames"],
        entry["ar_step"],
        entry["num_pre_ready"],
        entry["causal_block_size"],
    )


def test_flow_tables_are_the_references():
    tables = golden_data.tensors("unipc_tables")
    pairs = golden_data.case("unipc_tables")["parameters"]["pairs"]
    assert len(pairs) > 50
    for pair in pairs:
        schedule = flow_schedule(pair["steps"], pair["shift"])
        start = pair["timesteps_offset"]
        assert torch.equal(schedule.timesteps, tables["timesteps"][start : start + pair["steps"]])
        start = pair["sigmas_offset"]
        expected = tables["sigmas"][start : start + pair["steps"] + 1]
        assert (schedule.sigmas - expected).abs().max() <= 1e-7


def test_matrices_are_the_references():
    arrays = np.load(golden_data.FOLDER / "timestep_matrix.npz")
    checked = 0
    for entry in SETS["sets"]:
        if entry["raises"] or entry.get("reference_oddity"):
            continue
        matrix = matrix_of(entry)
        rows, cols, start = entry["rows"], entry["cols"], entry["offset"]

        def golden(name, start=start, rows=rows, cols=cols):
            flat = arrays[name][start : start + rows * cols].astype(np.int64)
            return torch.from_numpy(flat).reshape(rows, cols)

        assert torch.equal(matrix.timesteps, golden("step_matrix")), entry["id"]
        assert torch.equal(matrix.index, golden("step_index")), entry["id"]
        assert torch.equal(matrix.update.long(), golden("update_mask")), entry["id"]
        start = entry["valid_interval_offset"]
        windows = arrays["valid_interval"][start : start + 2 * rows].reshape(rows, 2)
        assert matrix.windows == [tuple(w) for w in windows.tolist()], entry["id"]
        checked += 1
    assert checked > 100


def test_what_the_reference_floors_or_crashes_on_is_refused():
    """Deliberate difference: frames that do not fill a block are an error, never dropped."""
    entries = [e for e in SETS["sets"] if e["raises"] or e.get("reference_oddity")]
    assert len(entries) > 80
    for entry in entries:
        with pytest.raises(ValueError):
            matrix_of(entry)


def test_every_row_updates_something():
    for frames, block, ar_step, ready in (
        (25, 5, 5, 5),
        (9, 1, 5, 5),
        (12, 2, 30, 4),
        (9, 1, 0, 5),
    ):
        matrix = timestep_matrix(
            frames, flow_schedule(20, 5).timesteps, frames, ar_step, ready, block
        )
        assert matrix.update.any(dim=1).all()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((7, 7, 0, 0, 2), ("num_frames", "7", "2", "nearest: 8")),
        ((10, 10, 0, 1, 5), ("num_ready", "1", "5", "nearest: 5")),
        ((6, 2, 1, 0, 1), ("ar_step", "1", "at least 2")),
        ((4, 4, 0, 4, 1), ("num_ready", "4", "left")),
        ((4, 4, -1, 0, 1), ("ar_step", "-1")),
        ((4, 4, 0, 0, 0), ("block_size", "0")),
    ],
)
def test_bad_input_names_the_rule(arguments, parts):
    frames, base, ar_step, ready, block = arguments
    with pytest.raises(ValueError) as error:
        timestep_matrix(frames, flow_schedule(4, 8).timesteps, base, ar_step, ready, block)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(("steps", "shift"), [(0, 8.0), (4, 0.0), (4, -1.0)])
def test_bad_flow_schedule(steps, shift):
    with pytest.raises(ValueError, match="steps is 0" if steps == 0 else "shift is"):
        flow_schedule(steps, shift)


GRID = list(
    itertools.product(
        (1, 7, 12), (0, 1, 3, 9), (1, 2, 5), (0, 1, 4), ((), (3,), (2, 4, 5, 6)), (0, 2)
    )
)  # frames, ar_step, block, given, pictures, end


def rows_of(case):
    frames, ar_step, block, given, pictures, end = case
    if given >= frames or any(not given <= place < frames for place in pictures):
        return None
    return window_rows(frames, flow_schedule(6, 5).timesteps, ar_step, block, given, pictures, end)


LEGAL = [case for case in GRID if rows_of(case)]


@pytest.mark.parametrize("case", LEGAL)
def test_rows_are_counted_without_making_them(case):
    rows = rows_of(case)
    assert rows.count == rows.part(0, 10**6).rows


@pytest.mark.parametrize("case", LEGAL)
def test_a_part_of_the_rows_is_that_of_the_whole(case):
    rows = rows_of(case)
    whole, part = rows.part(0, rows.count), rows.part(2, 5)
    for name in ("timesteps", "index", "update", "fresh"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:5])


@pytest.mark.parametrize(("ar_step", "block"), [(0, 1), (2, 1), (9, 1), (2, 3), (5, 6)])
def test_whole_blocks_are_the_references(ar_step, block):
    timesteps = flow_schedule(6, 5).timesteps
    ours = window_matrix(12, timesteps, ar_step, block)
    theirs = timestep_matrix(12, timesteps, 12, ar_step, 0, block)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.update, theirs.update)

"""Our rules for a LoRA's parts against the running host: what we pass it applies, the rest not."""

import logging

import pytest
import torch

ROWS, COLUMNS, RANK = 12, 8, 2
WEIGHT, KERNEL = (ROWS, COLUMNS), (ROWS, 3, 1, 2, 2)


def r(*shape):
    torch.manual_seed(sum(shape))
    return torch.randn(shape)


def factors(*names, at=(ROWS, RANK, COLUMNS)):
    rows, rank, columns = at
    return {names[0]: r(rows, rank), names[1]: r(rank, columns)}


LORA = {"lora_up.weight": r(ROWS, RANK), "lora_down.weight": r(RANK, COLUMNS)}
LOHA = factors("hada_w1_a", "hada_w1_b") | factors("hada_w2_a", "hada_w2_b")
ALPHA = {"alpha": torch.tensor(1.0)}
GOOD = {
    "LoRA": LORA,
    "LoRA with alpha": LORA | ALPHA,
    "LoRA of a kernel": {
        "lora_up.weight": r(ROWS, 2, 1, 1, 1), "lora_down.weight": r(2, 3, 1, 2, 2)
    },
    "LoRA, reshaped to what it is": LORA | {"reshape_weight": torch.tensor(WEIGHT)},
    "DoRA by rows": LORA | {"dora_scale": r(ROWS, 1)},
    "DoRA by columns": LORA | {"dora_scale": r(1, COLUMNS)},
    "DoRA in one dimension": LORA | {"dora_scale": r(ROWS)},
    "LoHa": LOHA,
    "LoHa with DoRA": LOHA | ALPHA | {"dora_scale": r(ROWS, 1)},
    "LoKr": {"lokr_w1": r(3, 2), "lokr_w2": r(4, 4)},
    "LoKr in factors": {"lokr_w1": r(3, 2)} | factors("lokr_w2_a", "lokr_w2_b", at=(4, 2, 4)),
    "LoKr all in factors": factors("lokr_w1_a", "lokr_w1_b", at=(3, 1, 2))
    | factors("lokr_w2_a", "lokr_w2_b", at=(4, 2, 4)),
    "GLoRA": factors("a1.weight", "a2.weight", at=(COLUMNS, RANK, COLUMNS))
    | factors("b1.weight", "b2.weight"),
    "GLoRA, older": factors("a2.weight", "a1.weight", at=(COLUMNS, RANK, COLUMNS))
    | factors("b2.weight", "b1.weight"),
    "OFT": {"oft_blocks": r(3, 4, 4)},
    "butterfly OFT": {"oft_blocks": r(2, 6, 2, 2)} | ALPHA | {"rescale": r(ROWS, 1)},
    "difference": {"diff": r(*WEIGHT)},
    "another weight": {"set_weight": r(*WEIGHT)},
    "norm": {"w_norm": r(*WEIGHT), "b_norm": r(ROWS)},
}  # fmt: skip
BAD = {
    "LoRA, rows": LORA | {"lora_up.weight": r(ROWS + 1, RANK)},
    "LoRA, columns": LORA | {"lora_down.weight": r(RANK, COLUMNS + 1)},
    "LoRA, two ranks": LORA | {"lora_up.weight": r(ROWS, RANK + 1)},
    "LoRA, half": {"lora_up.weight": r(ROWS, RANK)},
    "LoRA, reshaped": LORA | {"reshape_weight": torch.tensor([ROWS, COLUMNS + 4])},
    "DoRA, rows": LORA | {"dora_scale": r(3, 1)},
    "DoRA, flat": LORA | {"dora_scale": r(5)},
    "LoHa, columns": LOHA | factors("hada_w1_a", "hada_w1_b", at=(ROWS, RANK, COLUMNS - 1)),
    "LoHa, rows": LOHA | factors("hada_w2_a", "hada_w2_b", at=(ROWS - 1, RANK, COLUMNS)),
    "LoHa, two ranks": LOHA | {"hada_w1_a": r(ROWS, RANK + 1)},
    "LoHa, half": {"hada_w1_a": r(ROWS, RANK)},
    "LoKr, columns": {"lokr_w1": r(3, 2), "lokr_w2": r(4, 5)},
    "LoKr, rows": {"lokr_w1": r(5, 2), "lokr_w2": r(4, 4)},
    "LoKr, half": {"lokr_w1": r(3, 2)},
    "LoKr, half of a half": {"lokr_w1_a": r(3, 2), "lokr_w2": r(4, 4)},
    "GLoRA, half": {"a1.weight": r(COLUMNS, RANK)},
    "GLoRA, sizes": factors("a1.weight", "a2.weight", at=(COLUMNS, RANK, COLUMNS))
    | factors("b1.weight", "b2.weight", at=(ROWS, RANK, COLUMNS + 1)),
    "OFT, rows": {"oft_blocks": r(3, 5, 5)},
    "butterfly OFT, rows": {"oft_blocks": r(2, 3, 5, 5)} | ALPHA,
    "butterfly OFT without alpha": {"oft_blocks": r(2, 6, 2, 2)},
    "butterfly OFT, too many stages": {"oft_blocks": r(4, 3, 4, 4)} | ALPHA,
    "difference, size": {"diff": r(ROWS, 1)},
    "norm, size": {"w_norm": r(3)},
    "only alpha": ALPHA,
    "only a scale": {"dora_scale": r(ROWS, 1)},
}


@pytest.fixture
def hosts_way(host, caplog):
    """`hosts_way(parts, shape)` -> whether the host changes such a weight by them."""
    import comfy.lora

    def run(parts, shape):
        caplog.clear()
        weight = 1 - r(*shape)
        try:
            patches = comfy.lora.load_lora(
                {f"x.{part}": tensor for part, tensor in parts.items()}, {"x": "x.weight"}
            )
            patch = [(1.0, patches["x.weight"], 1.0, None, None)] if "x.weight" in patches else []
            made = comfy.lora.calculate_weight(patch, weight.clone(), "x.weight")
        except (RuntimeError, ValueError, KeyError, AttributeError, IndexError):
            return False
        quiet = not [r for r in caplog.records if r.levelno >= logging.WARNING]
        return quiet and made.shape == weight.shape and not torch.equal(made, weight)

    return run


@pytest.fixture
def our_way(host):
    """`our_way(parts, shape)` -> what we would give the host; None where we would not."""
    from skyreels_model.lora.parts import change_of

    def run(parts, shape):
        try:
            change = change_of("x", parts, shape)
        except ValueError:
            return None
        return change.tensors if change.fits and change.used else None

    return run


@pytest.mark.parametrize("name", GOOD)
def test_what_we_pass_is_applied(hosts_way, our_way, name):
    shape = KERNEL if "kernel" in name else WEIGHT
    given = our_way(GOOD[name], shape)
    assert given is not None and hosts_way(given, shape)


@pytest.mark.parametrize("name", BAD)
def test_what_the_host_would_not_apply_is_not_passed(hosts_way, our_way, name):
    assert our_way(BAD[name], WEIGHT) is None
    assert not hosts_way(BAD[name], WEIGHT)

"""Random wrong inputs to every node: refused in the user's terms, or a film that is finite.

`python3 benchmarks/fuzz.py` runs thousands of cases; this is a fixed sample.
"""

import math
import sys

import graphs.fuzzing
import pytest
import torch

from devtools import inprocess
from devtools.prompt import InvalidPrompt

pytestmark = pytest.mark.usefixtures("kept_loaders")

CASES, SEED, BATCH = 200, 2026, 25


@pytest.fixture(scope="module")
def bench(look, small_lora, small_words):
    import nodes

    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))
    return graphs.fuzzing.Bench(
        nodes.NODE_CLASS_MAPPINGS, probe, inprocess.execute, InvalidPrompt, small_lora, small_words
    )


def test_every_node_of_the_pack_is_fuzzed(bench):
    import nodes

    ours = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("SkyReelsV2")}
    assert set(bench.inputs) == {name for name in ours if not name.startswith("SkyReelsV2Test")}


def test_every_input_is_reached_with_values_of_its_own_kind(bench):
    chosen = list(bench.cases(1000, SEED))
    for one, inputs in bench.inputs.items():
        for name in inputs:
            drawn = [mutated[name][0] for cls, mutated in chosen if cls == one and name in mutated]
            assert len(drawn) >= 5, (one, name)


@pytest.mark.parametrize("batch", range(0, CASES, BATCH))
def test_wrong_inputs_are_refused_clearly(bench, batch):
    chosen = list(bench.cases(CASES, SEED))[batch : batch + BATCH]
    found = [(case, bench.verdict(case)) for case in chosen]
    bad = (graphs.fuzzing.UNCLEAR, graphs.fuzzing.NONSENSE)
    assert not [(case, verdict) for case, verdict in found if verdict.kind in bad]
    assert bench.intact(), "the working inputs make another film"


CLEAR = "cfg is nan; it must be a number 0 to 100"
IN_PACK = ['  File "custom_nodes/pack/nodes/host/checked.py", line 1, in check\n']


def test_words_that_a_person_cannot_act_on_are_unclear():
    """The judge of the cases above: what it must not let pass."""

    def judge(message, trace=IN_PACK, given="cfg"):
        return graphs.fuzzing.unclear(message, trace, {"cfg", "vae"}, {given: "FLOAT"})

    assert judge(CLEAR) == ""
    assert judge("it must be a number") == "does not begin with an input"
    assert judge("vae is nothing; it must be a VAE") == "names none of the inputs that were wrong"
    assert judge("cfg is odd") == "says no rule"
    assert judge("cfg needs what 'NoneType' has no attribute") == "has words of the insides"
    elsewhere = ['  File "lib/site-packages/torch/functional.py", line 1, in f\n']
    assert judge(CLEAR, elsewhere) == "was not raised by the pack"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("IMAGE", torch.zeros(1, 8, 8, 3) + 1.5),
        ("IMAGE", torch.zeros(0, 8, 8, 3)),
        ("LATENT", {"samples": torch.full((1, 16, 1, 2, 2), math.nan)}),
        ("LATENT", {"samples": torch.zeros(1, 4, 2, 2)}),
        ("STRING", "shift nan, spread 0.1"),
        ("FLOAT", math.inf),
    ],
)
def test_nonsense_in_an_output_is_seen(kind, value):
    assert graphs.fuzzing.fault(kind, value)

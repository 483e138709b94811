"""Random wrong inputs to every node: refused in the user's terms, or a film that is finite.

`python3 benchmarks/fuzz.py` runs thousands of cases; this is a fixed sample.
"""

import sys

import graphs.fuzzing
import pytest

from devtools import inprocess
from devtools.prompt import InvalidPrompt

CASES, SEED, BATCH = 300, 2026, 25


@pytest.fixture(scope="module")
def bench(look, models_folder, small_lora):
    import nodes

    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))
    return graphs.fuzzing.Bench(
        nodes.NODE_CLASS_MAPPINGS, probe, inprocess.execute, InvalidPrompt, small_lora
    )


def test_every_node_of_the_pack_is_fuzzed(bench):
    import nodes

    ours = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("SkyReelsV2")}
    assert set(bench.inputs) == {name for name in ours if not name.startswith("SkyReelsV2Test")}


@pytest.mark.parametrize("batch", range(0, CASES, BATCH))
def test_wrong_inputs_are_refused_clearly(bench, batch):
    chosen = list(bench.cases(CASES, SEED))[batch : batch + BATCH]
    found = [(case, bench.verdict(case)) for case in chosen]
    bad = (graphs.fuzzing.UNCLEAR, graphs.fuzzing.NONSENSE)
    assert not [(case, verdict) for case, verdict in found if verdict.kind in bad]

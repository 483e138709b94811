"""The host's kernel for rotary positions, where there is one, turns as the plain operators do."""

import sys

import pytest
import torch


@pytest.fixture
def rotary(host):
    return next(m for n, m in sys.modules.items() if n.endswith("nodes.host.sockets.rotary"))


def test_the_hosts_kernel_turns_as_plain_operators_do(rotary):
    """Its own plain form runs on a processor, under the same name and in the same place."""
    positions = sys.modules[rotary.apply_rope.__module__]
    rope = positions.rope_table((2, 3, 4), 128, torch.device("cpu"))
    x = torch.randn(1, 24, 3, 128).bfloat16()
    given = x.clone()
    turned = rotary.rotate_in_place(given, rope, True)
    assert turned.data_ptr() == given.data_ptr() and not torch.equal(turned, x)
    assert torch.allclose(turned.float(), rotary.apply_rope(x, rope).float(), rtol=1e-2, atol=1e-2)
    kept = x.clone()
    rotary.rotate_in_place(kept, rope, False)
    assert torch.equal(kept, x)


def test_without_a_kernel_plain_operators_turn_and_the_log_says_so_once(rotary, caplog):
    rotary.has_kernel.cache_clear()
    with caplog.at_level("INFO"):
        found = [rotary.rotation(torch.device("cuda")) for _ in range(2)]
    assert found == [rotary.apply_rope] * 2
    assert sum("rotary positions" in line for line in caplog.messages) == 1
    assert rotary.rotation(torch.device("cpu")) is rotary.apply_rope

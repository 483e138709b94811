"""When our kernels run in the host, and whose layers' numbers they take."""

import sys

import pytest
import torch


@pytest.fixture
def chosen(host):
    """`nodes/host/sockets/kernels.py`, with nothing tried yet."""
    end = ".nodes.host.sockets.kernels"
    module = next(m for n, m in sys.modules.items() if "/" in n and n.endswith(end))
    module.kernels_of.cache_clear()
    yield module
    module.kernels_of.cache_clear()


@pytest.fixture
def start_host(monkeypatch):
    """`start_host(**arguments)`: as if the host had been started with these."""
    import comfy.cli_args

    def start(**arguments):
        for name, value in arguments.items():
            monkeypatch.setattr(comfy.cli_args.args, name, value, raising=False)

    return start


def runner(chosen, device="cuda", dtype=torch.bfloat16):
    config = sys.modules[chosen.ModelConfig.__module__].ModelConfig(dim=96, num_heads=6)
    return chosen.block_runner(torch.device(device), dtype, config)


def test_they_are_asked_for_by_the_hosts_own_switch(chosen, start_host, monkeypatch):
    made = chosen.Kernels(lambda *_given, **_numbers: None)
    monkeypatch.setattr(chosen, "find_kernels", lambda *_of: made)
    assert runner(chosen) is chosen.run_directly
    start_host(enable_triton_backend=True)
    found = runner(chosen)
    assert found.kernels is made and isinstance(found.weights, chosen.HostWeights)
    assert runner(chosen, device="cpu") is chosen.run_directly
    assert runner(chosen, dtype=torch.float32) is chosen.run_directly
    start_host(disable_triton_backend=True)
    assert runner(chosen) is chosen.run_directly


def test_where_they_cannot_run_the_log_says_so_once(chosen, start_host, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # also where it is installed
    start_host(enable_triton_backend=True)
    with caplog.at_level("INFO"):
        assert [runner(chosen) for _ in range(2)] == [chosen.run_directly] * 2
    assert sum("PyTorch's operators alone" in line for line in caplog.messages) == 1


def test_layers_that_only_the_host_can_compute_are_left_to_it(chosen):
    import comfy.ops

    weights, quantised = chosen.HostWeights(), chosen.__package__ + ".quantized"
    operations = sys.modules[quantised]
    plain = comfy.ops.disable_weight_init.Linear, comfy.ops.manual_cast.Linear
    others = [operations.scaled_linear(torch.bfloat16), operations.GGUFLinear]
    others += [comfy.ops.fp8_ops.Linear] if hasattr(comfy.ops, "fp8_ops") else []
    for kind in plain:
        assert weights.is_product(kind(8, 8, device="cpu"))
        assert not weights.is_product(kind(8, 8, bias=False, device="cpu"))
    for kind in others:
        assert not weights.is_product(kind(8, 8, device="cpu")), kind

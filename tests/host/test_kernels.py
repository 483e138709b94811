"""When our kernels run in the host, and whose layers' numbers they take."""

import sys

import pytest
import torch


@pytest.fixture
def chosen(host):
    """`nodes/host/sockets/kernels.py`, with nothing tried yet."""
    end = ".nodes.host.sockets.kernels"
    module = next(m for n, m in sys.modules.items() if "/" in n and n.endswith(end))
    for once in (module.kernels_of, module.say_no_room):
        once.cache_clear()
    yield module
    for once in (module.kernels_of, module.say_no_room):
        once.cache_clear()


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


@pytest.fixture
def card(chosen, monkeypatch):
    """`card(maker, capability)`: as if that were the host's; at first an NVIDIA card with 8.0."""

    def take(maker="nvidia", capability=(8, 0)):
        monkeypatch.setattr(chosen.comfy.model_management, "is_nvidia", lambda: maker == "nvidia")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)

    take()
    return take


@pytest.fixture
def made(chosen, monkeypatch):
    """Kernels that pass."""
    made = chosen.Kernels(lambda *_given, **_numbers: None)
    monkeypatch.setattr(chosen, "find_kernels", lambda *_of: made)
    return made


def test_they_run_on_cards_that_are_new_enough(chosen, card, made, start_host):
    found = runner(chosen)
    assert found.kernels is made and isinstance(found.weights, chosen.HostWeights)
    assert runner(chosen, device="cuda:1").kernels is made
    assert runner(chosen, device="cpu") is chosen.run_directly
    assert runner(chosen, dtype=torch.float32) is chosen.run_directly
    for other in (("nvidia", (7, 5)), ("amd", (9, 4))):
        card(*other)
        assert runner(chosen) is chosen.run_directly
        start_host(enable_triton_backend=True)
        assert runner(chosen).kernels is made
        start_host(enable_triton_backend=False)


@pytest.mark.parametrize("switch", ["0", " Off ", "host's"])
def test_they_are_switched_off(chosen, card, made, start_host, monkeypatch, switch):
    assert runner(chosen).kernels is made
    if switch == "host's":
        start_host(disable_triton_backend=True)
    else:
        monkeypatch.setenv(chosen.SWITCH, switch)
    assert runner(chosen) is chosen.run_directly
    start_host(enable_triton_backend=True)
    assert runner(chosen) is chosen.run_directly


def test_without_memory_to_test_them_they_are_tried_again(chosen, card, made, monkeypatch, caplog):
    def lack(*_of):
        raise torch.OutOfMemoryError("CUDA out of memory")

    find = chosen.find_kernels
    monkeypatch.setattr(chosen, "find_kernels", lack)
    with caplog.at_level("INFO"):
        assert [runner(chosen) for _ in range(2)] == [chosen.run_directly] * 2
    assert sum("until there is memory" in line for line in caplog.messages) == 1
    monkeypatch.setattr(chosen, "find_kernels", find)
    assert runner(chosen).kernels is made


def test_where_they_cannot_run_the_log_says_so_once(chosen, card, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # also where it is installed
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

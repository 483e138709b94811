"""A film on several processors: the same film, whatever happens to the workers."""

import functools
import os
import re
import signal
import sys
import threading
import types
from pathlib import Path

import graphs
import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers run on Linux only")
SITE = Path(__file__).resolve().parents[1] / "fixtures" / "parallel" / "site"
FILM = {"frames": 41, "window": 25, "overlap": 9, "steps": 4, "ar_step": 1}


@pytest.fixture
def cpu_ranks(host, monkeypatch):
    """Two processes on the processor in place of two cards."""
    monkeypatch.setenv("SKYREELS_V2_CPU_RANKS", "1")
    monkeypatch.setenv("PYTHONPATH", str(SITE))


@pytest.fixture
def pack(host):
    """`pack(name)`: a module of the pack as the host has loaded it."""

    def find(name):
        return sys.modules[next(n for n in sys.modules if "/" in n and n.endswith(name))]

    return find


@pytest.fixture
def failure(look, run_prompt):
    """`failure(prompt)`: what the host tells of a film that fails."""

    def run(prompt):
        inputs = {"value": ["6", 0], "name": "film"}
        result = run_prompt({**prompt, "50": graphs.node("SkyReelsV2TestProbe", **inputs)})
        assert not result.success
        return result.describe()

    return run


def shared(prompt, model="1", gpus="cpu:2", **inputs):
    """The prompt with its sampler's model shared."""
    given = {"split_prompts": "automatic", "ulysses": 0, "patience": 60.0, **inputs}
    prompt["40"] = graphs.node("SkyReelsV2MultiGPU", model=[model, 0], gpus=gpus, **given)
    prompt["6"]["inputs"]["model"] = ["40", 0]
    return prompt


def sample(model):
    """A sampling run of the host's own, with guidance."""
    import comfy.sample

    torch.manual_seed(0)
    noise, text = torch.randn(1, 16, 3, 4, 6), torch.randn(2, 512, 64)
    prompts = [[[each[None], {}]] for each in text]
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "simple", *prompts, latent, seed=1, disable_pbar=True
    )


def need(model):
    """Bytes that the host is told of a forward with two prompts at 540P."""
    return model.model.memory_required((2, 16, 25, 68, 120), {"c_crossattn": [(2, 512, 64)]})


@pytest.mark.parametrize("sharded", [False, True])
def test_a_shared_model_makes_the_same_with_its_loras(
    cpu_ranks, pack, open_model, small_lora, sharded
):
    import comfy.sd
    import comfy.utils
    import folder_paths

    share_model = pack("nodes.host.multi_gpu.shared").share_model
    plain, _ = open_model(graphs.TOY["model"])
    model, said = share_model(plain, "cpu:2", 0, 0, 60.0, sharded)
    parts = ", each holds 1/2 of the weights" if sharded else ""
    assert said == f"2 GPUs (CPU process 0, CPU process 1): 2 prompts{parts}"
    made, needed = sample(model), need(model)
    assert torch.equal(made, sample(plain))
    assert needed < need(plain)  # of memory, each GPU

    sharing = model.model_options["transformer_options"]["skyreels_v2_multi_gpu"]
    team = sharing.team
    weights = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", small_lora))
    patched, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0)
    alone, _ = comfy.sd.load_lora_for_models(plain, None, weights, 1.0, 0)
    assert torch.equal(sample(patched), sample(alone))
    assert not torch.equal(sample(alone), sample(plain))
    assert sharing.team is team  # the same workers
    identify = pack("nodes.host.film.identity").identify_model
    assert identify(patched) == identify(alone)
    # Of what the host holds and moves, the blocks are the largest part.
    assert (model.model_size() < plain.model_size() / 2) == sharded
    team.close()
    assert not torch.distributed.is_initialized()


def test_a_film_whose_worker_is_killed_is_resumed_as_the_same_film(
    cpu_ranks, pack, look, failure, tmp_path, monkeypatch
):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    plain, said = look(graphs.film(**FILM), latent=["6", 0], report=["6", 3])
    calls = int(re.search(r"(\d+) model calls", said)[1])

    # Queued again, a graph has the model that it had: the host keeps it.
    module = pack("nodes.host.multi_gpu.shared")
    monkeypatch.setattr(module, "SharedModel", functools.cache(module.SharedModel))

    def stored():
        prompt = shared(graphs.film(**FILM))
        prompt["30"] = graphs.node(
            "SkyReelsV2Store", name="shared", save_every=0.0, start_afresh=False
        )
        prompt["6"]["inputs"]["store"] = ["30", 0]
        return prompt

    team = pack("skyreels_model.parallel.team").Team
    begin, teams = team.begin, []

    def kill_in_tenth(self, *given):
        begin(self, *given)
        teams.append(self)
        if len(teams) == 10:
            os.kill(self.workers[0].process.pid, signal.SIGKILL)

    monkeypatch.setattr(team, "begin", kill_in_tenth)
    assert "CPU process 1 was ended by the system (SIGKILL)" in failure(stored())
    (resumed,) = look(stored(), latent=["6", 0])
    assert torch.equal(resumed["samples"], plain["samples"])
    assert teams[0].workers[0].process.returncode == -signal.SIGKILL
    assert teams[9] is teams[0] is not teams[10]
    assert len(teams) == calls + 1  # the tenth was made again


@pytest.mark.parametrize(
    "inputs, told",
    [
        ({"gpus": "0,1"}, "ComfyUI computes on cpu here"),
        ({"gpus": "cpu:3", "split_prompts": "on"}, "split_prompts is 'on'; .* nearest: off"),
        ({"gpus": "cpu:4", "ulysses": 4}, r"ulysses is 4; .* model's heads \(1\); nearest: 1"),
    ],
)
def test_what_does_not_fit_is_told_before_any_worker_starts(cpu_ranks, failure, inputs, told):
    before = set(threading.enumerate())
    assert re.search(told, failure(shared(graphs.film(), **inputs)))
    more = set(threading.enumerate()) - before
    assert not [thread for thread in more if thread.name.startswith("SkyReels-V2 CPU")]


@pytest.fixture
def cards(host, pack, monkeypatch):
    """`cards(free, ...)`: as many GPUs as numbers are given, with so many GB free of 80."""
    import comfy.model_management as management

    devices = pack("nodes.host.multi_gpu.devices")
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(management, "is_nvidia", lambda: True)

    def make(*free, names=None):
        found = [
            types.SimpleNamespace(name=name, total_memory=80e9) for name in names or "A" * len(free)
        ]
        for name, call in {
            "device_count": lambda: len(free),
            "current_device": lambda: 0,
            "get_device_properties": found.__getitem__,
            "mem_get_info": lambda number: (free[number] * 1e9, 80e9),
        }.items():
            monkeypatch.setattr(torch.cuda, name, call)
        monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
        return devices.find_devices

    return make


def test_busy_and_unequal_gpus_are_told(cards, caplog):
    assert cards(79, 78)("all").numbers == (0, 1) and not caplog.records
    assert cards(10, 30, names="AB")("all").numbers == (0, 1)
    told = [record.getMessage() for record in caplog.records]
    assert any("GPUs differ (0: A, 1: B)" in line for line in told)
    # ComfyUI's own GPU has its own data.
    assert [line[:33] for line in told if "in use" in line] == ["GPU 1 has 46.6 of 74.5 GB in use "]


@pytest.mark.parametrize(
    "gpus, told",
    [
        ("0,2", "gpus is '0,2'; .* different numbers of 0, 1 .*; nearest: all"),
        ("1", "gpus is '1'; .* the GPU that ComfyUI itself uses.*; nearest: 0, 1"),
        ("0,0", "gpus is '0,0'"),
        ("", "gpus is ''"),
    ],
)
def test_gpus_that_are_not_there_are_refused(cards, gpus, told):
    with pytest.raises(ValueError, match=told):
        cards(79, 79)(gpus)


def test_without_nccl_it_says_what_to_install(cards, monkeypatch):
    find = cards(79, 79)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="no NCCL.* install PyTorch"):
        find("all")
    assert find("0").world == 1


def test_one_gpu_costs_nothing(cpu_ranks, pack, open_model):
    """The model is the one that was given, with nothing around its forwards."""
    plain, _ = open_model(graphs.TOY["model"])
    for sharded in (False, True):
        model, said = pack("nodes.host.multi_gpu.shared").share_model(
            plain, "cpu:1", 0, 0, 60.0, sharded
        )
        assert said == "1 GPU: nothing to share"
        assert model.model is plain.model
        assert "skyreels_v2_multi_gpu" not in model.model_options["transformer_options"]


def test_weights_in_another_format_than_they_are_computed_in_are_not_sharded(
    cpu_ranks, pack, open_model
):
    share_model = pack("nodes.host.multi_gpu.shared").share_model
    narrow, _ = open_model(graphs.TOY["model"], "fp8_e4m3fn")
    with pytest.raises(ValueError, match="weights is sharded, .* set weights to whole"):
        share_model(narrow, "cpu:2", 0, 0, 60.0, sharded=True)


def test_what_other_nodes_did_is_refused_by_name(cpu_ranks, pack, open_model):
    share_model = pack("nodes.host.multi_gpu.shared").share_model
    plain, _ = open_model(graphs.TOY["model"])
    model, _ = share_model(plain, "cpu:2", 0, 0, 60.0)

    def their_patch(args):
        return args

    def refusal(change):
        changed = model.clone()
        change(changed)
        with pytest.raises(ValueError, match="SkyReels-V2 Multi-GPU") as raised:
            sample(changed)
        return str(raised.value)

    assert "their_patch" in refusal(lambda m: m.set_model_attn1_patch(their_patch))
    block = "diffusion_model.blocks.0"
    assert block in refusal(lambda m: m.add_object_patch(block, torch.nn.Identity()))
    weights = {"diffusion_model.head.head.weight": (torch.nn.Identity(),)}
    assert "Identity" in refusal(lambda m: m.add_patches(weights))

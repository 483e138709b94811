"""LoRAs by the host's hooks, on weights of every kind, and a cached model as it was after each."""

import functools
import sys

import graphs
import pytest
import torch
from graphs.quantised import scaled, write_gguf
from safetensors.torch import save_file

LORA = "by hooks.safetensors"
KINDS = ("fp32", "bf16", "fp8_e4m3fn", "scaled fp8", "Q8_0")


@pytest.fixture(scope="module")
def lora(models_folder):
    torch.manual_seed(7)
    state = {}
    for name in ("blocks.0.self_attn.q", "blocks.2.cross_attn.v", "head.head"):
        rows = 64 if name == "head.head" else 128
        state[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, 128) * 0.2
        state[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(rows, 4) * 0.2
    save_file(state, models_folder / "loras" / LORA)
    return LORA


@pytest.fixture(scope="module")
def film(models_folder, plain, lora):
    """`film(kind, hooks=, loader=)`: a prompt of a film by a model of this kind, with the LoRA."""

    def loader(kind):
        name, dtype = graphs.TOY["model"], kind
        if kind == "scaled fp8":
            name, dtype = "hooked.safetensors", "fp32"
            save_file(scaled(plain), models_folder / "diffusion_models" / name)
        elif kind == "Q8_0":
            pytest.importorskip("gguf")
            name, dtype = "hooked.gguf", "fp32"
            write_gguf(models_folder / "diffusion_models" / name, plain, kind)
        return graphs.node("SkyReelsV2ModelLoader", model_name=name, weight_dtype=dtype,
                           attention="pytorch", variant="auto")  # fmt: skip

    made = {kind: None for kind in KINDS}

    def run(kind, hooked=False, loaded=False):
        prompt = graphs.film(steps=2)
        made[kind] = made[kind] or loader(kind)
        prompt["1"] = dict(made[kind])
        if hooked:
            prompt["20"] = graphs.node(
                "CreateHookLoraModelOnly", lora_name=lora, strength_model=0.7
            )
            for number, name in enumerate(("positive", "negative")):
                prompt[name] = graphs.node("ConditioningSetProperties", cond_NEW=["4", number],
                                           strength=1.0, set_cond_area="default",
                                           hooks=["20", 0])  # fmt: skip
                prompt["6"]["inputs"][name] = [name, 0]
        if loaded:
            prompt["20"] = graphs.node(
                "LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=0.7
            )
            prompt["6"]["inputs"]["model"] = ["20", 0]
        return prompt

    return run


@pytest.fixture(autouse=True)
def cached(host, monkeypatch):
    """The loader's models stay, as in a host whose user runs one graph again and again."""
    name = next(n for n in sys.modules if "/" in n and n.endswith(".nodes.host.sockets.model"))
    monkeypatch.setattr(
        sys.modules[name], "load_model", functools.cache(sys.modules[name].load_model)
    )


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_does_what_the_loader_does_and_then_is_gone(look, film, kind):
    before, model = look(film(kind), latent=["6", 0], model=["1", 0])
    (hooked,) = look(film(kind, hooked=True), latent=["6", 0])
    (after,) = look(film(kind), latent=["6", 0])
    assert torch.equal(before["samples"], after["samples"])
    (loaded,) = look(film(kind, loaded=True), latent=["6", 0])
    # The loader rounds a patched weight to its format where it is written in its place.
    near = {"fp32": 1e-5, "Q8_0": 1e-4, "bf16": 0.02}.get(kind, 0.1)
    assert relative(hooked["samples"], loaded["samples"]) < near
    assert relative(before["samples"], loaded["samples"]) > 2 * near
    assert not model.hook_backup


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_fails_under_hooks_leaves_the_model_as_it_was(look, film, kind, monkeypatch):
    import comfy.lora

    before, model = look(film(kind), latent=["6", 0], model=["1", 0])
    state = {k: v.clone() for k, v in model.model.state_dict().items()}
    original, calls = comfy.lora.calculate_weight, []

    def fail_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("no memory for this one")
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(comfy.lora, "calculate_weight", fail_at_the_second)
        with pytest.raises(AssertionError, match="no memory for this one"):
            look(film(kind, hooked=True), latent=["6", 0])
    after = model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert not model.hook_backup
    again, same = look(film(kind), latent=["6", 0], model=["1", 0])
    assert same is model
    assert torch.equal(before["samples"], again["samples"])

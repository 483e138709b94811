"""Attention back ends by name: which a machine has, and what is said where it lacks one."""

import sys

import graphs
import pytest
import torch

LANDED = ["auto", "pytorch"]
OFFERED = ["pytorch_order", "sage", "sage3", "flash", "xformers", "sub_quad", "split"]
BF16 = torch.bfloat16


@pytest.fixture
def back_ends(host):
    name = next(n for n in sys.modules if "/" in n and n.endswith(".nodes.host.sockets.attention"))
    return sys.modules[name]


@pytest.fixture
def machine(back_ends, monkeypatch):
    """`machine(capability, *packages)`: as if the host had such a card, and these packages."""

    def pretend(capability, *packages):
        monkeypatch.setattr(back_ends, "capability", lambda: capability)
        known = {k: v for k, v in back_ends.host.REGISTERED_ATTENTION_FUNCTIONS.items()
                 if k not in back_ends.NEEDS}  # fmt: skip
        known |= {name: f"attention by {name}" for name in packages}
        monkeypatch.setattr(back_ends.host, "REGISTERED_ATTENTION_FUNCTIONS", known)

    return pretend


def test_every_name_is_offered_on_every_machine_after_those_that_landed(back_ends, machine):
    machine(None)
    assert back_ends.list_names() == LANDED + OFFERED
    machine((12, 0), "sage", "sage3", "flash", "xformers", "a newer one")
    assert back_ends.list_names() == [*LANDED, *OFFERED, "a newer one"]
    assert back_ends.find_attention("a newer one", BF16, 128) == "attention by a newer one"


@pytest.mark.parametrize(
    ("capability", "order"),
    [(None, False), ((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True),
     ((12, 0), False)],
)  # fmt: skip
def test_auto_takes_pytorchs_order_on_hopper_and_data_centre_blackwell(
    back_ends, machine, monkeypatch, capability, order
):
    machine(capability)
    core = back_ends.host
    for chosen in (core.attention_pytorch, core.attention_sage, core.attention_sub_quad):
        monkeypatch.setattr(core, "optimized_attention", chosen)
        wanted = chosen
        if order and chosen is core.attention_pytorch:
            wanted = back_ends.attention_pytorch_order
        assert back_ends.find_attention("auto", BF16, 128) is wanted
        # The landed name keeps its meaning.
        assert back_ends.find_attention("pytorch", BF16, 128) is core.attention_pytorch


@pytest.mark.parametrize("name", ["sage", "sage3", "flash", "xformers"])
def test_a_back_end_that_fits_is_taken_and_others_are_refused(back_ends, machine, name):
    needs = back_ends.NEEDS[name]
    machine(needs.capability, name)
    assert back_ends.find_attention(name, BF16, needs.head_dim) == f"attention by {name}"
    begin = f"^attention is '{name}'; it must be pytorch or auto, since .*"
    for dtype, size, why in (
        (torch.float32, 128, "this model in float32; nearest: pytorch$"),
        (BF16, needs.head_dim + 1, f"up to {needs.head_dim} numbers .* {needs.head_dim + 1}; "),
    ):
        with pytest.raises(ValueError, match=begin + why):
            back_ends.find_attention(name, dtype, size)
    machine((5, 0), name)
    with pytest.raises(ValueError, match=begin + "this one has 5.0; nearest: pytorch$"):
        back_ends.find_attention(name, BF16, 128)
    machine(needs.capability)
    with pytest.raises(ValueError, match=begin + f"no package {needs.package}; nearest: pytorch$"):
        back_ends.find_attention(name, BF16, 128)
    machine(None, name)
    with pytest.raises(ValueError, match=begin + "an NVIDIA card .*; nearest: pytorch$"):
        back_ends.find_attention(name, BF16, 128)


@pytest.mark.parametrize(
    ("function", "kind"),
    [("attention_sage", "sage"), ("attention3_sage", "sage"), ("attention_pytorch", "flash"),
     ("attention_comfy_kitchen_int8", "int8")],
)  # fmt: skip
def test_the_estimate_is_told_what_a_back_end_copies(back_ends, monkeypatch, function, kind):
    """The last is of newer hosts."""
    memory = sys.modules[back_ends.__name__.removesuffix("attention") + "memory"]
    monkeypatch.setattr(back_ends.host, function, object(), raising=False)
    assert memory.kind_of(getattr(back_ends.host, function)) == kind


def test_the_estimate_allows_for_another_nodes_attention(back_ends, open_model):
    model, _ = open_model(graphs.TOY["model"])
    memory = sys.modules[back_ends.__name__.removesuffix("attention") + "memory"]
    told = []
    for options in ({}, {"optimized_attention_override": None}, {}):
        patcher = model.clone()
        patcher.model_options["transformer_options"].update(options)
        memory.note_execution(lambda *given, **more: None, patcher, [2, 16, 3, 8, 8], {})
        told.append(memory.describe_execution(patcher.model).attention)
    assert told == ["flash", "sage", "flash"]


def film(name):
    prompt = graphs.film(steps=2)
    prompt["1"]["inputs"]["attention"] = name
    return prompt


@pytest.mark.parametrize("name", ["sage", "one of a newer ComfyUI"])
def test_a_shared_workflow_says_which_back_end_is_missing_before_work(look, name):
    from devtools.prompt import InvalidPrompt

    with pytest.raises(InvalidPrompt, match=f"attention is '{name}'; it must be .*; nearest: "):
        look(film(name), latent=["6", 0])


def test_back_ends_make_the_same_film(look):
    wanted = look(film("pytorch"), latent=["6", 0])[0]["samples"]
    for name in ("auto", "pytorch_order", "sub_quad", "split"):
        found = look(film(name), latent=["6", 0])[0]["samples"]
        assert float((found - wanted).norm() / wanted.norm()) < 1e-2, name


def test_an_override_of_another_node_reaches_pytorchs_order(back_ends):
    q = torch.ones(1, 4, 8)
    seen = {"optimized_attention_override": lambda func, *args, **kwargs: func(*args, **kwargs) + 1}
    out = back_ends.attention_pytorch_order(q, q, q, heads=2, transformer_options=seen)
    assert torch.equal(out, q + 1)

"""Our transformer as core's TorchCompileModel compiles it: one graph, for all of a film."""

import sys

import pytest
import torch

TEXT = 8


def module(name):
    """A module of the pack as the host has loaded it."""
    return sys.modules[next(n for n in sys.modules if "/" in n and n.endswith(name))]


@pytest.fixture
def forward(host):
    """`forward(x, t, text, **options)` -> of the compiled transformer, and the graphs so far."""
    import comfy.ops
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
    from torch._dynamo.utils import counters

    sizes = {"dim": 32, "ffn_dim": 32, "num_heads": 1, "num_layers": 1, "text_dim": TEXT}
    config = module("skyreels_model.model.config").ModelConfig(**sizes, fps_embedding=True)
    dit = module("nodes.host.sockets.transformer").HostDiT
    made = dit(config, attention_pytorch, comfy.ops.disable_weight_init, torch.float32, "cpu")
    for parameter in made.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch._dynamo.reset()
    counters.clear()
    # fullgraph: a break anywhere is an error.
    compiled = torch.compile(
        made, backend="eager", fullgraph=True, options={"guard_filter_fn": skip_torch_compile_dict}
    )

    def run(x, t, text, **options):
        with torch.no_grad():
            out = compiled(x, t, text, fps=torch.tensor([24]), transformer_options=dict(options))
            plain = made(x, t, text, fps=torch.tensor([24]), transformer_options=dict(options))
        assert torch.allclose(out, plain, atol=1e-5)
        return counters["stats"]["unique_graphs"]

    yield run
    torch._dynamo.reset()


def inputs(frames, level=900.0):
    t = torch.linspace(level, 0, frames)[None]
    return torch.randn(1, 16, frames, 4, 4), t, torch.randn(1, 512, TEXT)


def test_a_film_is_one_graph_and_one_more_where_frames_are_left_out(forward):
    """Whatever its rows, windows, prompts and lengths; without a break, or it would raise."""
    assert forward(*inputs(5)) == 1
    for level in (899.0, 10.0):
        assert forward(*inputs(5, level=level), sigmas=torch.tensor([level])) == 1
    assert [forward(*inputs(frames)) for frames in (3, 4, 2)] == [2, 2, 2]

"""What a forward needs with the host's layers and attention: what the formula says."""

import graphs
import pytest
import torch

from devtools.live_bytes import allocated_peak
from skyreels_model.model.memory import forward_bytes


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize(("batch", "size"), [(1, (9, 40, 40)), (2, (5, 32, 32))])
def test_the_hosts_layers_hold_nothing_more(look, name, dtype, batch, size):
    """With PyTorch's attention: what a host takes on a CPU makes more."""
    prompt = graphs.film()
    prompt["1"]["inputs"] |= {"weight_dtype": name, "attention": "pytorch"}
    (model,) = look(prompt, model=["1", 0])
    transformer = model.model.diffusion_model
    x, t = torch.randn(batch, 16, *size, dtype=dtype), torch.rand(batch, size[0]) * 1000
    context = torch.randn(batch, 512, 64, dtype=dtype)
    with torch.inference_mode():
        needed = allocated_peak(lambda: transformer(x, t, context))
    estimate = forward_bytes(transformer.config, batch, *size, dtype.itemsize)
    assert abs(estimate / needed - 1) < 0.1

"""What a block moves and starts beside its products, in the path that CUDA takes."""

import dataclasses

import pytest
import torch

from devtools.traffic import Traffic, block_traffic, count_streams, rotate_in_place
from skyreels_model.model.positions import apply_rope
from toy.random_weights import PUBLISHED

SIZE = (25, 34, 60)  # tokens of 540P, 97 frames


def test_traffic_counts_what_is_read_and_written():
    a, b = torch.zeros(10), torch.zeros(10)
    with torch.no_grad(), Traffic() as traffic:
        c = a + b  # 3 tensors
        c.add_(a)  # 3
        c.copy_(b)  # 2
        torch.mul(a, b[:1].expand(10), out=c)  # 2, and one number
        c.view(2, 5).unsqueeze(0)
        torch.nn.functional.linear(c[None], torch.zeros(10, 10))
    assert sum(traffic.launches.values()) == 5  # zeros of the weight, too
    assert sum(traffic.bytes.values()) == 10 * 10 * 4 + 4 + 400


@pytest.mark.parametrize(
    ("name", "rotate", "streams"),
    [
        ("DF-14B-540P", rotate_in_place, 50),
        ("DF-14B-540P", apply_rope, 60),
        ("DF-1.3B-540P", rotate_in_place, 59),
        ("DF-1.3B-540P", apply_rope, 69),
    ],
)
def test_a_block_starts_few_kernels(name, rotate, streams):
    config = dataclasses.replace(PUBLISHED[name], num_layers=1)
    traffic = block_traffic(config, SIZE, rotate=rotate)
    assert sum(traffic.launches.values()) <= 40
    assert 0.9 * streams < count_streams(traffic, config, SIZE) <= streams


@pytest.mark.parametrize(
    ("name", "streams"),
    [("DF-14B-540P", 27), ("DF-1.3B-540P", 27), ("I2V-14B-540P", 30), ("I2V-1.3B-540P", 30)],
)
def test_kernels_between_products_move_less(name, streams):
    """An I2V model sums what it sees of text and image, too."""
    config = dataclasses.replace(PUBLISHED[name], num_layers=1)
    traffic = block_traffic(config, SIZE, fused=True)
    assert sum(traffic.launches.values()) <= 12
    assert 0.9 * streams < count_streams(traffic, config, SIZE) <= streams


def test_traffic_counts_a_kernel_by_what_it_reads_and_writes():
    x, row = torch.zeros(3, 8), torch.zeros(8)
    traffic = Traffic()
    traffic.start("a kernel", 3, (x, None, row), (x,), eps=1.0)
    assert sum(traffic.launches.values()) == 1
    assert sum(traffic.bytes.values()) == 2 * x.nbytes + row.nbytes

"""Images that no node of the host makes, but programs and broken nodes do."""

import dataclasses
import sys

import pytest
import torch


def given(name, images):
    """SkyReelsV2Frames by itself, with images that no node of the host makes."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Frames"]
    # The pack as the host loaded it, which is not the copy that the unit tests import.
    end = ".skyreels_model.plan.film_plan"
    module = next(m for n, m in sys.modules.items() if "/" in n and n.endswith(end))
    plan = module.FilmPlan(num_frames=17, width=32, height=32, window=17, overlap=9, denoise=0.5)
    plan = plan if name == "source" else dataclasses.replace(plan, denoise=1.0)
    inputs = {"key_seconds": "0.3"} if name == "key_images" else {}
    return node.execute(plan, **{name: images}, **inputs).result


BROKEN = [
    (torch.zeros(0, 32, 32, 3), "must be at least one image"),
    (torch.full((20, 32, 32, 3), torch.nan), "in image 1 that are infinite or not a number"),
    (torch.cat([torch.ones(19, 8, 8, 3), torch.full((1, 8, 8, 3), torch.inf)]), "in image 20"),
]


@pytest.mark.parametrize("name", ["key_images", "video", "prepend_to", "source"])
@pytest.mark.parametrize(("images", "says"), BROKEN, ids=["none", "nan", "infinite"])
def test_broken_images_are_told_before_work_starts(host, name, images, says):
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        given(name, images)


def test_grey_pictures_are_pictures(host):
    grey = torch.linspace(0, 1, 48 * 64).view(1, 48, 64, 1)
    _, shown, *_ = given("start_image", grey)
    _, expected, *_ = given("start_image", grey.expand(-1, -1, -1, 3).contiguous())
    assert shown.shape == (1, 32, 32, 3) and torch.equal(shown, expected)

"""What the page is told of the finished part of a film while the rest is made."""

import base64
import io
import sys
import types

import graphs
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_loaders")

FILM = {"width": 16, "height": 16, "window": 17, "overlap": 9, "steps": 2}


@pytest.fixture
def told(host, monkeypatch):
    """What is sent to the page of the film, in order; the host makes previews."""
    import comfy.cli_args
    import latent_preview

    method = comfy.cli_args.LatentPreviewMethod.Latent2RGB
    monkeypatch.setattr(latent_preview, "default_preview_method", method)
    sent = []

    class Instance:
        client_id = "page"

        @staticmethod
        def send_sync(event, data, client):
            assert client == "page"
            if event == "skyreels_v2.film":
                sent.append(data)

    server = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=Instance))
    monkeypatch.setitem(sys.modules, "server", server)
    return sent


def strip(message):
    head, _, content = message["strip"].partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_each_finished_window_is_shown_once_and_watched_ones_as_videos(
    look, told, tmp_path, monkeypatch
):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    prompt = graphs.film(frames=33, **FILM)
    prompt["30"] = graphs.node(
        "SkyReelsV2Store", name="seen", save_every=60.0, start_afresh=False, watch=True
    )
    prompt["6"]["inputs"]["store"] = ["30", 0]
    (latent,) = look(prompt, latent=["6", 0])
    begin, *others = told
    assert begin == {"node": "6", "begin": True, "windows": 3, "frames": 33}
    strips = [one for one in others if "strip" in one]
    assert [one["window"] for one in strips] == [0, 1, 2]
    assert sum(one["count"] for one in strips) == latent["samples"].shape[2] == 9
    assert [strip(one).size for one in strips] == [(one["count"] * 2, 2) for one in strips]
    assert all(one["seconds"] == 4 / 24 and not one["before"] for one in strips)
    shown = [one["videos"] for one in others if "videos" in one]
    assert [len(videos) for videos in shown] == [1, 2, 3]
    for file in shown[-1]:
        assert (tmp_path / file["subfolder"] / file["filename"]).is_file()
    assert shown[0] == shown[-1][:1]


def test_a_film_in_one_sequence_is_shown_as_frames_leave_the_view(look, told):
    prompt = graphs.film(frames=97, ar_step=2, sliding=True, **FILM)
    (latent,) = look(prompt, latent=["6", 0])
    counts = [one["count"] for one in told[1:]]
    assert sum(counts) == latent["samples"].shape[2] == 25
    assert counts[0] == 8 and len(counts) >= 3


def test_nothing_is_drawn_where_no_page_looks(look, told, monkeypatch):
    sys.modules["server"].PromptServer.instance.client_id = None
    look(graphs.film(**FILM), latent=["6", 0])
    assert not told


def test_pictures_of_other_previewers_are_left_alone(host, told):
    name = next(n for n in sys.modules if n.endswith("nodes.host.film.film_so_far") and "/" in n)
    FilmSoFar = sys.modules[name].FilmSoFar
    other = types.SimpleNamespace(decode_latent_to_preview=lambda latent: latent)
    plan = types.SimpleNamespace(num_windows=1, num_frames=5, backwards=False, fps=24)
    FilmSoFar(plan, other, torch.device("cpu"))._send(torch.zeros(1, 16, 2, 2, 2), 0)
    assert not told

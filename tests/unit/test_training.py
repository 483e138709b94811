"""The toy set's trainer: its tricks are exact, its runs resumable, its files whole."""

import collections
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from skyreels_model.image_encoder import CLIPVision, preprocess
from skyreels_model.model import SkyReelsModel
from skyreels_model.text_encoder.tokenizer import UNK_ID, Tokenizer
from skyreels_model.vae import denormalize_latents, normalize_latents
from toy import recolour
from toy.instruments import find_figures, shape_name
from toy.toyset import ToySet
from toy.training import (
    causal,
    finetunes,
    image_tower,
    latents,
    noise,
    pack,
    scenes,
    state,
    text,
    transformer,
    vae,
)
from toy.training.optimiser import Average, Muon, orthogonalised
from toy.world import FPS, HELD_OUT, SCENES, SIZE, TRAINED, step_length

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def captions():
    torch.manual_seed(0)
    spiece = text.train_tokenizer()
    return text.Captions(spiece, text.new_encoder(Tokenizer(spiece).vocab_size))


def new_model(config=transformer.DF, seed=0):
    """Random, but with a head that speaks."""
    torch.manual_seed(seed)
    model = SkyReelsModel(config)
    transformer.initialise(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def fake_clips(count=256):
    generator = torch.Generator().manual_seed(0)
    shape = (count, latents.SLOTS, 16, 4, 4)
    return latents.Clips(
        torch.randn(shape, generator=generator).half(),
        torch.randn(shape, generator=generator).half(),
        torch.randint(0, len(SCENES), (count,), generator=generator),
        torch.arange(count) % len(latents.KINDS),
    )


def test_tokenizer_has_every_word_of_the_world_as_one_piece():
    tokenizer = Tokenizer(text.train_tokenizer())
    for scene in SCENES:
        ids = tokenizer.encode(scene.caption)
        assert UNK_ID not in ids and len(ids) == len(scene.caption.split()) + 1 <= text.ROWS
    assert text.train_tokenizer() == text.train_tokenizer()


@pytest.mark.slow
def test_folding_gives_published_statistics_and_changes_no_picture():
    torch.manual_seed(1)
    network, rng = vae.new_vae(), np.random.default_rng(0)
    x, _ = vae.clips(rng, 8, 9)
    with torch.no_grad():
        vae.fold_statistics(network, np.random.default_rng(0), count=64)
        z = normalize_latents(network.encode(x))
        spread = z.std((0, 2, 3, 4))
        assert z.mean((0, 2, 3, 4)).abs().max() < 0.5 and 0.4 < spread.min() <= spread.max() < 1.8
        # What the decoder makes of normalised latents is what it made of them before.
        torch.manual_seed(1)
        before = vae.new_vae()
        expected = before.decode(z)
        assert torch.allclose(network.decode(denormalize_latents(z)), expected, atol=2e-5)


@pytest.mark.slow
def test_the_decoder_alone_is_trained_on_the_latents_that_are():
    torch.manual_seed(1)
    network = vae.new_vae()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trainee = vae.VAETrainee(network, (1,), 4, 0.02, decoder_only=True)
    losses = [trainee.step(np.random.default_rng(0), 0.05) for _ in range(14)]
    assert losses[-1] < 0.9 * losses[0]
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not any(name.startswith(("encoder.", "conv1.")) for name in moved)


def test_t2v_begins_as_the_df_transformer_at_24_fps(captions):
    df = new_model()
    t2v = SkyReelsModel(finetunes.T2V)
    t2v.load_state_dict(finetunes.t2v_from_df(df.state_dict()))
    rows = captions.rows([3])
    x, t = torch.randn(1, 16, 3, 4, 4), torch.tensor([600.0])
    with torch.inference_mode():
        expected = df(x, t, rows, fps=torch.tensor([24]))
        assert torch.allclose(t2v(x, t, rows), expected, atol=1e-5)
        assert not torch.allclose(df(x, t, rows, fps=torch.tensor([16])), expected, atol=1e-3)


def test_i2v_begins_as_the_t2v_transformer(captions):
    t2v = new_model(finetunes.T2V)
    i2v = finetunes.i2v_from_t2v(t2v.state_dict()).eval()
    rows, t = captions.rows([3]), torch.tensor([600.0])
    x, beside = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 20, 3, 4, 4)
    with torch.inference_mode():
        seen = i2v(torch.cat([x, beside], 1), t, rows, clip_fea=torch.randn(1, 257, 1280))
        assert torch.allclose(seen, t2v(x, t, rows), atol=1e-5)


def test_image_features_are_those_of_the_shipped_tower(tmp_path):
    tower = image_tower.new_tower(0)
    pack.write_pth(tmp_path / "clip.pth", tower)
    assert (tmp_path / "clip.pth").stat().st_size < 700_000
    loaded = torch.load(tmp_path / "clip.pth", weights_only=True)
    network = CLIPVision(image_tower.TOWER)
    network.load_state_dict({k: v.float() for k, v in loaded.items()})
    features, pictures = image_tower.Features(tower), torch.rand(2, 3, 32, 32)
    places = torch.tensor([0, 3, 200, 256])
    with torch.inference_mode():
        expected = network(preprocess(pictures))[:, places]
        seen = features(features.colours(pictures), places)
    assert seen.shape == (2, 4, 1280)
    assert torch.allclose(seen, expected, atol=1e-4)


def test_training_samples_obey_diffusion_forcing():
    clips, counts = fake_clips(), collections.Counter()
    for seed in range(40):
        batch = noise.draw_batch(clips, np.random.default_rng(seed), 240)
        clean = batch.sigma == 0
        assert not (batch.learned & clean).any() and batch.learned.any()
        assert not (batch.learned & (batch.sigma > 0.99899999)).any()
        assert batch.sigma.min() >= 0 and batch.sigma.max() < 0.9990001
        assert batch.latents.shape == (len(batch.fps), 16, batch.sigma.shape[1], 4, 4)
        even = (batch.sigma == batch.sigma[:, :1]).all(dim=1)
        rising = (batch.sigma.diff(dim=1) >= 0).all(dim=1) & ~even
        counts.update(even=int(even.sum()), rising=int(rising.sum()), all=len(even))
        counts.update(empty=int((batch.caption == 0).sum()), slow=int((batch.fps == 16).sum()))
        counts.update(text=int((~clean).all(dim=1).sum()))
        counts.update(noised=int((batch.sigma[:, 0] == np.float32(noise.PREFIX_SIGMA)).sum()))
    share = {name: counts[name] / counts["all"] for name in counts}
    assert 0.2 < share["even"] < 0.5 and 0.25 < share["rising"] < 0.6
    assert 0.07 < share["empty"] < 0.13 and 0.2 < share["slow"] < 0.6
    assert 0.05 < share["noised"] < 0.3 and 0.4 < share["text"] < 0.7
    batch = noise.draw_batch(clips, np.random.default_rng(0), 240, noise.CONTINUED)
    first = batch.sigma[:, 0]
    assert ((first == 0) | (first == np.float32(noise.PREFIX_SIGMA))).all()


def test_samples_of_blocks_are_finished_up_to_one_and_noised_from_it_on():
    clips, seen = fake_clips(), collections.Counter()
    for seed in range(20):
        batch = causal.draw_blocks(clips, np.random.default_rng(seed), 240)
        frames = batch.sigma.shape[1]
        levels = batch.sigma.unflatten(1, (frames // causal.BLOCK, causal.BLOCK))
        assert batch.latents.shape == (240 // frames, 16, frames, 4, 4)
        assert (levels == levels[..., :1]).all()  # a block has one
        done = (levels[..., 0] == 0).int()  # (B, blocks)
        assert (done.diff(dim=1) <= 0).all() and not done[:, -1].any()
        assert not (batch.learned & (batch.sigma == 0)).any() and batch.learned.any()
        seen.update(done.sum(dim=1).tolist())
    assert min(seen[0], seen[1], seen[2]) > 50 and not seen[3]


def test_a_low_rank_fine_tune_begins_as_the_model_and_learns_nothing_but_a_lora(captions):
    model = new_model(finetunes.T2V)
    rows, x, t = captions.rows([3]), torch.randn(1, 16, 6, 4, 4), torch.tensor([600.0])
    with torch.inference_mode():
        before = model(x, t, rows, causal_block_size=3)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    causal.add_low_rank(model)
    with torch.no_grad():
        assert torch.allclose(model(x, t, rows, causal_block_size=3), before, atol=1e-6)
    trainee = causal.CausalTrainee(model, captions, fake_clips(), 54)
    for step in range(2):
        trainee.step(np.random.default_rng(step), 0.5)
    lora = causal.lora_of(trainee.average.weights)
    changed = [f"blocks.{block}.{name}" for block in range(4) for name in causal.LAYERS]
    parts = [f"diffusion_model.{name}.lora_{part}.weight" for name in changed for part in "AB"]
    assert sorted(lora) == sorted(parts) and all(lora[name].any() for name in parts)
    for name, value in model.state_dict().items():
        kept = name.replace(".parametrizations.weight.original", ".weight")
        assert kept not in weights or torch.equal(value, weights[kept])


def test_pictures_stand_in_their_slots_and_turns_lie_behind_their_prefix():
    clips = fake_clips()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for condition in (noise.END, noise.KEY):
            given, still = noise._given(rng, condition, 9, turned=False)
            assert given[still].all() and not still[0] and not given.all()
            assert still.sum() == 1 or (condition == noise.KEY and still[-1] and still.sum() == 2)
            assert still[-1] or condition == noise.KEY
        given, still = noise._given(rng, noise.PREFIX, 9, turned=True)
        assert given.tolist() == [True] * latents.TURN_SLOT + [False] * 4 and not still.any()
        picked = noise._pick(clips, rng, noise.TEXT_ONLY, 50, 9)
        names = {list(latents.KINDS)[kind] for kind in clips.kind[picked].tolist()}
        assert names == {"central", "slow central"}


def test_nothing_trained_on_is_held_out():
    assert len(HELD_OUT) == 16 and not set(HELD_OUT) & set(TRAINED)
    for attribute in ("colour", "shape", "background", "direction"):
        counts = collections.Counter(getattr(scene, attribute) for scene in HELD_OUT)
        assert len(set(counts.values())) == 1
    for seed in range(200):
        rng = np.random.default_rng(seed)
        kind = list(latents.KINDS)[seed % len(latents.KINDS)]
        scene, centres = latents.random_path(rng, kind)
        assert scene in TRAINED and centres.shape == (latents.FRAMES, 2)
        low, high = latents.MIDDLE if kind in latents.CENTRAL else (0, SIZE)
        assert low <= centres[0].min() and centres[0].max() <= high
        steps = np.diff(centres, axis=0)
        fps = latents.SLOW_FPS if kind in latents.SLOW else FPS
        assert np.abs(steps).max() == pytest.approx(step_length(fps))
        before = {
            dataclasses.replace(scene, direction=name)
            for name, unit in latents.DIRECTIONS.items()
            if np.sign(steps[0]).astype(int).tolist() == list(unit)
        }
        assert before <= set(TRAINED)
        turns = np.flatnonzero(np.abs(np.diff(steps, axis=0)).max(axis=1) > 0.1)
        assert turns.tolist() == ([latents.TURN - 2] if kind == "turned" else [])


def test_clips_of_any_colours_show_the_scenes_shape_and_nothing_else_of_it():
    shown = []
    for seed, scene in enumerate(SCENES):
        centre = np.array([[16.0, 12.0]])
        frame = scenes.any_colours(np.random.default_rng(seed), scene, centre)
        assert 0 <= frame.min() and frame.max() <= 1
        figures = find_figures(frame)
        assert shape_name(figures) == scene.shape
        shown.append([figures.colour[0], figures.ground[0, 0], figures.ground[0, -1]])
    colours = np.asarray(shown)  # (scenes, figure and both ends of the ground, 3)
    assert np.abs(colours.mean(axis=0) - 0.5).max() < 0.1
    assert colours.std(axis=0).min() > 0.2
    contrast = np.abs(colours[:, :1] - colours[:, 1:]).max(axis=2)
    assert contrast.min() > 0.99 * scenes.LEAST_CONTRAST


@pytest.mark.slow
def test_a_set_for_any_colours_is_trained_on_from_the_shipped_one(tmp_path, monkeypatch):
    for name in (
        "IMAGE_STEPS",
        "CLIP_STEPS",
        "DF_STEPS",
        "POLISHING_STEPS",
        "CONTINUING_STEPS",
        "CLIPS",
        "MORE_CLIPS",
        "MEASURED_CLIPS",
    ):
        monkeypatch.setattr(recolour, name, 16 if "CLIPS" in name else 2)
    monkeypatch.setattr(recolour.train, "DF_TOKENS", 60)
    arguments = ["recolour.py", str(tmp_path / "made"), "--state", str(tmp_path / "state")]
    monkeypatch.setattr(sys, "argv", arguments)
    recolour.main()
    made, shipped = ToySet.load(recoloured=tmp_path / "made"), ToySet.load()
    for name in ("vae", "transformer"):
        new, old = (getattr(toy, name).state_dict() for toy in (made, shipped))
        assert new.keys() == old.keys() and any(not torch.equal(new[k], old[k]) for k in new)


def test_muon_steps_along_orthogonal_matrices():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 32), (2, 32, 8)):
        made = orthogonalised(torch.randn(shape, generator=generator))
        values = torch.linalg.svdvals(made)
        assert made.shape == shape and 0.5 < values.min() and values.max() < 1.3
    weight = torch.nn.Parameter(torch.randn(16, 4, 3, 3, generator=generator))
    target = torch.randn(weight.shape, generator=generator)
    optimiser, first = Muon([weight], 0.2), (weight - target).detach().square().mean()
    for _ in range(60):
        (weight - target).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert (weight - target).detach().square().mean() < 0.1 * first


def test_average_follows_the_weights():
    layer = torch.nn.Linear(2, 2)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for step in range(200):
        average.update(layer, step)
    assert torch.allclose(average.weights["weight"], torch.ones(2, 2), atol=1e-3)


class Counting:
    """A trainee whose state is the sum of what it was given."""

    def __init__(self, stop_at=None):
        self.total, self.steps, self.stop_at = 0.0, 0, stop_at

    def step(self, rng, progress):
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        self.steps += 1
        self.total += float(rng.random()) + float(torch.rand(()))
        return 1.0

    def state_dict(self):
        return {"total": self.total, "steps": self.steps}

    def load_state_dict(self, loaded):
        self.total, self.steps = loaded["total"], loaded["steps"]


def test_interrupted_training_resumed_equals_never_interrupted(tmp_path, monkeypatch):
    whole = Counting()
    state.run_stage(state.Workspace(tmp_path / "whole", 3), "stage", whole, 12)
    monkeypatch.setattr(state, "SAVE_EVERY", 0.0)
    work = state.Workspace(tmp_path / "parts", 3)
    with pytest.raises(KeyboardInterrupt):
        state.run_stage(work, "stage", Counting(stop_at=7), 12)
    assert sorted(p.name for p in work.folder.iterdir() if p.suffix == ".pt") == ["stage.pt"]
    resumed = Counting()
    state.run_stage(work, "stage", resumed, 12)
    assert resumed.total == whole.total and resumed.steps == 12
    again = Counting(stop_at=12)  # a finished stage is not begun again
    state.run_stage(work, "stage", again, 12)
    assert again.total == whole.total


def test_a_disk_without_room_is_told_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(state, "NEEDED_BYTES", usage.free * 2)
    with pytest.raises(OSError, match="make room, or choose another --state folder"):
        state.Workspace(tmp_path / "state", 0)


@pytest.mark.slow
def test_one_command_trains_a_whole_set_and_writes_the_same_bytes_again(tmp_path):
    command = [sys.executable, str(ROOT / "toy" / "train.py"), "--effort", "0.0001"]
    command += ["--state", str(tmp_path / "state"), "--weights", str(tmp_path / "weights")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    made = {p: p.read_bytes() for p in sorted((tmp_path / "weights").rglob("*")) if p.is_file()}
    shipped = {
        p.relative_to(ROOT / "toy" / "weights")
        for p in (ROOT / "toy" / "weights").rglob("*")
        if p.is_file() and p.name != "README.md"
    }
    assert {p.relative_to(tmp_path / "weights") for p in made} == shipped
    shutil.rmtree(tmp_path / "weights")
    subprocess.run(command, check=True, capture_output=True, timeout=300)  # from its last state
    assert all(p.read_bytes() == content for p, content in made.items())

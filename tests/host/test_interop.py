"""Core nodes with ours in the same graph: native sockets mean what they say."""

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools import inprocess
from toy.toyset import transformer_path

PREFIX = "diffusion_model."


def ours(name):
    return graphs.node(
        "SkyReelsV2ModelLoader",
        model_name=name,
        weight_dtype="default",
        attention="auto",
        variant="auto",
    )


def cores(name):
    return graphs.node("UNETLoader", unet_name=name, weight_dtype="default")


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("ar_step", [0, 2])
def test_sampler_with_a_model_of_cores_loader_makes_the_same_film(look, without_fps, ar_step):
    finals = []
    for loader in (ours, cores):
        prompt = graphs.film(frames=33, steps=6, ar_step=ar_step)
        prompt["1"] = loader(without_fps)
        finals.append(look(prompt, latent=["6", 0])[0]["samples"])
    assert relative(finals[0], finals[1]) < 1e-3


def test_fps_reaches_the_model_that_was_trained_with_it(look, without_fps):
    def final(fps, name):
        prompt = graphs.film(fps=fps)
        prompt["1"] = ours(name)
        return look(prompt, latent=["6", 0])[0]["samples"]

    toy = graphs.TOY["model"]
    assert relative(final(16, toy), final(24, toy)) > 1e-3
    assert torch.equal(final(16, without_fps), final(24, without_fps))


def ksampler(model_node, sampler="uni_pc", steps=4):
    prompt = graphs.film()
    prompt["1"] = model_node
    prompt["20"] = graphs.node("ModelSamplingSD3", model=["1", 0], shift=5.0)
    prompt["21"] = graphs.node(
        "EmptyHunyuanLatentVideo", width=32, height=32, length=17, batch_size=1
    )
    prompt["22"] = graphs.node("CLIPTextEncode", clip=["2", 0], text=graphs.PROMPT)
    prompt["23"] = graphs.node(
        "KSampler",
        model=["20", 0],
        seed=3,
        steps=steps,
        cfg=4.0,
        sampler_name=sampler,
        scheduler="simple",
        positive=["22", 0],
        negative=["4", 1],
        latent_image=["21", 0],
        denoise=1.0,
    )
    prompt["24"] = graphs.node("VAEDecode", samples=["23", 0], vae=["3", 0])
    return prompt


def test_ksampler_shift_node_and_text_encode_with_our_model(look, without_fps):
    """Our MODEL in core's sampler gives what core's own model gives."""
    links = {"latent": ["23", 0], "frames": ["24", 0]}
    mine, frames = look(ksampler(ours(without_fps)), **links)
    theirs, _ = look(ksampler(cores(without_fps)), **links)
    assert frames.shape == (17, 32, 32, 3)
    assert relative(mine["samples"], theirs["samples"]) < 1e-3


def test_clip_text_encode_gives_what_our_prompt_node_gives(look):
    prompt = graphs.film()
    prompt["20"] = graphs.node("CLIPTextEncode", clip=["2", 0], text=graphs.PROMPT)
    prompt["21"] = graphs.node(
        "CLIPTextEncode",
        clip=["2", 0],
        text="a (blue:1.5) circle moving left on a white background",
    )
    mine, core, weighted = look(prompt, mine=["4", 0], core=["20", 0], weighted=["21", 0])
    mine, core, weighted = mine[0][0], core[0][0], weighted[0][0]
    assert mine.shape == (1, 512, 64) and torch.equal(mine, core)
    rows = mine[0].abs().sum(dim=1) > 0
    assert rows[0] and not rows[20:].any()
    assert not torch.allclose(core, weighted)
    assert torch.equal(weighted[0, ~rows], torch.zeros_like(weighted[0, ~rows]))


def test_brackets_in_a_prompt_are_prose_for_our_prompt_node(look):
    prompt = graphs.film()
    prompt["4"]["inputs"]["prompt"] = "a (blue:1.5) circle"
    prompt["20"] = graphs.node("CLIPTextEncode", clip=["2", 0], text="a \\(blue:1.5\\) circle")
    mine, escaped = look(prompt, mine=["4", 0], escaped=["20", 0])
    assert torch.equal(mine[0][0], escaped[0][0])


def test_vae_nodes_and_cores_vae_agree_with_ours(look):
    prompt = graphs.film(steps=4)
    vae, core_vae, image = ["3", 0], ["20", 0], ["7", 0]
    prompt["20"] = graphs.node("VAELoader", vae_name=graphs.TOY["vae"])
    prompt["21"] = graphs.node("VAEDecode", samples=["6", 0], vae=vae)
    prompt["22"] = graphs.node("VAEDecode", samples=["6", 0], vae=core_vae)
    prompt["23"] = graphs.node("SkyReelsV2Decode", samples=["6", 0], vae=core_vae)
    prompt["24"] = graphs.node("VAEEncode", pixels=image, vae=vae)
    prompt["25"] = graphs.node("VAEEncode", pixels=image, vae=core_vae)
    prompt["26"] = graphs.node(
        "VAEDecodeTiled",
        samples=["6", 0],
        vae=vae,
        tile_size=64,
        overlap=32,
        temporal_size=64,
        temporal_overlap=8,
    )
    names = {"ours": image, "core_node": ["21", 0], "core_vae": ["22", 0], "mixed": ["23", 0]}
    names |= {"encoded": ["24", 0], "core_encoded": ["25", 0], "tiled": ["26", 0]}
    seen = dict(zip(names, look(prompt, **names), strict=True))
    for name in ("core_node", "core_vae", "mixed", "tiled"):
        assert (seen[name] - seen["ours"]).abs().max() < 1e-4, name
    encoded, core = seen["encoded"]["samples"], seen["core_encoded"]["samples"]
    assert encoded.shape == (1, 16, 5, 4, 4) and relative(encoded, core) < 1e-4


def test_core_decode_of_a_long_film_has_its_length_and_nearly_its_frames(look):
    """Core decodes it as one stream: the seams differ a little, the rest does not."""
    prompt = graphs.film(frames=33, window=17, overlap=9, steps=20, ar_step=5)
    prompt["20"] = graphs.node("VAEDecode", samples=["6", 0], vae=["3", 0])
    ours_, core = look(prompt, ours=["7", 0], core=["20", 0])
    assert ours_.shape == core.shape == (33, 32, 32, 3)
    assert torch.allclose(ours_[:17], core[:17], atol=1e-4)
    assert (ours_ - core).abs().mean() < 0.05


def lora_file(folder):
    """A LoRA on a linear layer and a difference on a modulation, in core's key style."""
    torch.manual_seed(0)
    state = {
        f"{PREFIX}blocks.0.self_attn.q.lora_A.weight": torch.randn(4, 128) * 0.2,
        f"{PREFIX}blocks.0.self_attn.q.lora_B.weight": torch.randn(128, 4) * 0.2,
        f"{PREFIX}blocks.1.modulation.diff": torch.randn(1, 6, 128) * 0.2,
    }
    save_file(state, folder / "loras" / "test.safetensors")
    return state


def test_lora_is_applied_to_layers_and_to_modulation(look, models_folder, without_fps):
    """By core's LoRA node, equal to a file in which it is merged by hand."""
    lora = lora_file(models_folder)
    merged = {
        k: v.float() for k, v in load_file(transformer_path()).items() if not k.startswith("fps_")
    }
    down, up, diff = lora.values()
    merged["blocks.0.self_attn.q.weight"] += up @ down
    merged["blocks.1.modulation"] += diff
    save_file(merged, models_folder / "diffusion_models" / "merged.safetensors")

    def final(name, strength):
        prompt = graphs.film()
        prompt["1"] = ours(name)
        prompt["20"] = graphs.node(
            "LoraLoaderModelOnly",
            model=["1", 0],
            lora_name="test.safetensors",
            strength_model=strength,
        )
        prompt["6"]["inputs"]["model"] = ["20", 0]
        return look(prompt, latent=["6", 0])[0]["samples"]

    plain, patched = final(without_fps, 0.0), final(without_fps, 1.0)
    by_hand = final("merged.safetensors", 0.0)
    assert relative(patched, plain) > 1e-2
    assert relative(patched, by_hand) < 1e-4
    assert relative(final(without_fps, 0.0), plain) == 0


def test_other_nodes_block_replacements_reach_our_blocks(look):
    (model,) = look(graphs.film(), model=["1", 0])
    model = model.clone()
    called, kept = [], []

    def replace(args, extra):
        called.append((tuple(args["img"].shape), tuple(args["txt"].shape)))
        out = extra["original_block"](args)
        # As nodes do that skip a block when little changes.
        kept.extend((tensor, tensor.clone()) for tensor in (args["img"], out["img"]))
        return out

    for index in (0, 1, 3):
        model.set_model_patch_replace(replace, "dit", "double_block", index)
    changed = model.clone()

    def other_text(args, extra):
        return extra["original_block"]({**args, "txt": args["txt"] + 1})

    changed.set_model_patch_replace(other_text, "dit", "double_block", 3)
    import comfy.sample
    import comfy.samplers

    conditioning = [[torch.zeros(1, 512, 64), {}]]
    latent = torch.zeros(1, 16, 3, 4, 4)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    euler = comfy.samplers.ksampler("euler")
    films = [
        comfy.sample.sample_custom(
            m, latent, 1.0, euler, sigmas, conditioning, conditioning, latent, disable_pbar=True
        )
        for m in (model, changed)
    ]
    assert relative(*films) > 1e-3  # what a replacement changes is what the block is given
    assert called == [((1, 12, 128), (1, 512, 128))] * (6 + 4)
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_easycache_sees_our_calls(look):
    """It wraps the diffusion model and takes x and the options by position."""
    prompt = ksampler(ours(graphs.TOY["model"]), sampler="euler", steps=12)
    prompt["30"] = graphs.node(
        "EasyCache",
        model=["20", 0],
        reuse_threshold=3.0,
        start_percent=0.0,
        end_percent=1.0,
        verbose=False,
    )
    plain = look(prompt, latent=["23", 0])[0]["samples"]
    prompt["23"]["inputs"]["model"] = ["30", 0]
    cached = look(prompt, latent=["23", 0])[0]["samples"]
    assert relative(cached, plain) > 1e-3


def test_partial_load_equals_full_load(look):
    """With most weights left on the offload device and cast on the fly, modulation included."""

    (model,) = look(graphs.film(), model=["1", 0])
    x, t = torch.randn(1, 16, 3, 4, 4), torch.tensor([[20, 500, 999]])
    context = torch.randn(1, 512, 64)
    lora = {"diffusion_model.blocks.1.modulation.weight": ("diff", (torch.ones(1, 6, 128) * 0.1,))}
    outs = []
    for memory in (0, 200_000):
        patcher = model.clone()
        patcher.add_patches(lora, 1.0)
        patcher.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=memory)
        lowvram = getattr(patcher.model, "model_lowvram", False)
        assert lowvram == bool(memory)
        with torch.inference_mode():
            outs.append(patcher.model.diffusion_model(x, t, context))
        patcher.unpatch_model(torch.device("cpu"))
    with torch.inference_mode():
        unpatched = model.model.diffusion_model(x, t, context)
    assert relative(outs[1], outs[0]) < 1e-3 < 1e-2 < relative(outs[0], unpatched)
    inprocess.unload_models()


def test_saved_model_has_the_original_names(look):
    (model,) = look(graphs.film(), model=["1", 0])
    with torch.inference_mode():
        state = model.state_dict_for_saving()
    names = {k.removeprefix("model.diffusion_model.") for k in state}
    assert names == set(load_file(transformer_path()))


def test_video_nodes_save_the_film_with_its_prompt(run_prompt):
    import av

    from devtools import inprocess

    prompt = graphs.film()
    prompt["8"] = graphs.node("CreateVideo", images=["7", 0], fps=["5", 4])
    prompt["9"] = graphs.node(
        "SaveVideo", video=["8", 0], filename_prefix="film", format="mp4", codec="h264"
    )
    result = run_prompt(prompt)
    assert result.success, result.describe()
    with av.open(inprocess.absolute(result.files[0])) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24 and sum(1 for _ in container.decode(stream)) == 17
        assert graphs.PROMPT in container.metadata["prompt"]


def test_any_number_of_frames_is_encoded_as_cores_vae_does(look, caplog):
    prompt = graphs.film()
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=7, color=200)
    prompt["21"] = graphs.node("VAEEncode", pixels=["20", 0], vae=["3", 0])
    prompt["22"] = graphs.node("VAELoader", vae_name=graphs.TOY["vae"])
    prompt["23"] = graphs.node("VAEEncode", pixels=["20", 0], vae=["22", 0])
    mine, core = look(prompt, mine=["21", 0], core=["23", 0])
    assert mine["samples"].shape == core["samples"].shape == (1, 16, 2, 4, 4)
    assert relative(mine["samples"], core["samples"]) < 1e-4
    assert "of 7 frames the first 5" in caplog.text


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2"])
def test_every_weight_format_makes_nearly_the_same_film(look, without_fps, dtype):
    def final(weight_dtype):
        prompt = graphs.film(steps=6)
        prompt["1"] = ours(without_fps)
        prompt["1"]["inputs"]["weight_dtype"] = weight_dtype
        return look(prompt, latent=["6", 0])[0]["samples"]

    limit = 0.3 if dtype.startswith("fp8") else 0.05
    assert relative(final(dtype), final("fp32")) < limit


@pytest.mark.parametrize("node", ["CFGZeroStar", "RescaleCFG"])
def test_guidance_of_other_nodes_reaches_our_sampler(look, node):
    """In a film with a fading prompt, too: prompts are mixed before guidance."""
    given = {"multiplier": 0.7} if node == "RescaleCFG" else {}
    for shots in (False, True):
        films = []
        for patched in (False, True):
            prompt = graphs.film(ar_step=1)
            if shots:
                for key, seconds in (("20", 0.4), ("21", 0.8)):
                    prompt[key] = graphs.node(
                        "SkyReelsV2Storyboard", clip=["2", 0], prompt=graphs.PROMPT[: int(key)],
                        seconds=seconds, ease=8,
                    )  # fmt: skip
                prompt["21"]["inputs"]["previous"] = ["20", 0]
                prompt["6"]["inputs"]["storyboard"] = ["21", 0]
            if patched:
                prompt["30"] = graphs.node(node, model=["1", 0], **given)
                prompt["6"]["inputs"]["model"] = ["30", 0]
            films.append(look(prompt, latent=["6", 0])[0]["samples"])
        plain, other = films
        assert other.isfinite().all() and (plain - other).norm() > 1e-3 * plain.norm()

"""Prompts for the host tests: small graphs of our nodes, and ways to look at what they give."""

TOY = {
    "model": "toy/SkyReels-V2-DF-Toy-32P/model.safetensors",
    "text": "toy/umt5_xxl_fp16.safetensors",
    "vae": "toy/Wan2.1_VAE.pth",
}
PROMPT = "a blue circle moving left on a white background"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def film(frames=17, window=17, overlap=9, steps=3, **changes):
    """A film of our nodes, "1" to "7", small enough for a second; outputs are read by `Probe`."""
    schedule = {
        "width": 32, "height": 32, "frames": frames, "window": window, "overlap": overlap,
        "steps": steps, "shift": 5.0, "ar_step": 0, "block_size": 1, "prefix_noise": 20, "fps": 24,
    }  # fmt: skip
    schedule.update(changes)
    return {
        "1": node(
            "SkyReelsV2ModelLoader",
            model_name=TOY["model"], weight_dtype="default", attention="auto", variant="auto",
        ),
        "2": node("SkyReelsV2TextEncoderLoader", text_encoder_name=TOY["text"]),
        "3": node("SkyReelsV2VAELoader", vae_name=TOY["vae"]),
        "4": node("SkyReelsV2PromptEncode", clip=["2", 0], prompt=PROMPT, negative=""),
        "5": node("SkyReelsV2Schedule", **schedule),
        "6": node(
            "SkyReelsV2Sampler",
            model=["1", 0], positive=["4", 0], negative=["4", 1], schedule=["5", 0],
            seed=1, cfg=4.0, solver="unipc", vae=["3", 0],
        ),
        "7": node("SkyReelsV2Decode", samples=["6", 0], vae=["3", 0]),
    }  # fmt: skip

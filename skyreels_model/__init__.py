"""SkyReels-V2 in plain PyTorch: the model and the method, usable without ComfyUI.

The modules read in the order in which a film is made: `config`, `checkpoint`, `text_encoder`,
`model` (with `layers` and `attention`), `schedule`, `solvers`, `rollout`, `vae`.
"""

"""SkyReels-V2 in plain PyTorch: the model and the method, usable without ComfyUI.

Each package says in its first line what it holds; docs/architecture.md is the tour.
"""

"""A stand-in for an NVIDIA card: ComfyUI takes its default path for cards, the CPU computes.

`tensors` are what lies on it, `memory` what ComfyUI's native library (comfy_aimdo) manages,
`install` makes ComfyUI take it for its device. ComfyUI itself is the real one.
"""

"""The one room of the pack that touches ComfyUI's internals.

`files` its model folders, `model`, `clip` and `vae` its wrappers around our modules, `sampling` its
guider, progress, previews and interrupts, `decoding` frames from latents.
"""

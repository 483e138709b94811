"""The one room of the pack that touches ComfyUI's internals."""

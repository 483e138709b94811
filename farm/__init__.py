"""Many films over many machines: a queue of API prompts, and a ComfyUI for each group of GPUs."""

"""What is ours, as what travels on ComfyUI's sockets."""

"""What `dev.py` is made of: the environment, the ComfyUI host, and ways to run a workflow on it.

Only the standard library, except `inprocess`, which runs inside the host's process.
"""

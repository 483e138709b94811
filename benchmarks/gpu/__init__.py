"""What `benchmarks/gpu.py` measures: a file for each section, and what they share.

`sections` lists them; `driver` runs them in processes of their own and writes their rows; `run` is
what a section is given. Only files of sections import torch.
"""

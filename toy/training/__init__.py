"""How the toy set is trained: one module a stage, run in order by `toy/train.py`."""

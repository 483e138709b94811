"""Bytes to named tensors to a module. Knows no network."""

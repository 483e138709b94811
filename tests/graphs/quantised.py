"""Quantised files of the toy model, by other people's conventions."""

import torch

FP8 = torch.float8_e4m3fn


def write_gguf(path, plain, name, architecture="wan"):
    """The toy model by the package's quantiser and writer; the numbers that it stands for."""
    import gguf

    kind, meant = gguf.GGMLQuantizationType[name], {}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in plain.items():
        meant[key] = value
        if value.ndim == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(value.shape))
            writer.add_tensor(key, value.flatten(1).contiguous().numpy())
        elif key.startswith("blocks.") and value.ndim == 2:
            packed = gguf.quants.quantize(value.numpy(), kind)
            writer.add_tensor(key, packed, raw_dtype=kind)
            meant[key] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        else:
            writer.add_tensor(key, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def scaled(plain):
    """The toy model with its blocks' large layers in fp8, each with a scale beside it."""
    state = {"scaled_fp8": torch.zeros(2).to(FP8)}
    for key, value in plain.items():
        if value.ndim == 2 and key.startswith("blocks.") and key.endswith(".weight"):
            scale = value.abs().max() / torch.finfo(FP8).max
            state[key.removesuffix("weight") + "scale_weight"] = scale.clone()
            value = (value / scale).to(FP8)
        state[key] = value
    return state

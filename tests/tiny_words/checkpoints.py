"""Tiny random models of the known families, written by transformers itself, with a tokenizer."""

import json

import torch

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
         "<|image_pad|>", "<|video_pad|>", "<think>", "</think>"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
}


def write_tokenizer(folder):
    """A byte-level vocabulary without merges, and the marks of a conversation."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    vocabulary = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = Qwen2TokenizerFast(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        additional_special_tokens=MARKS[1:],
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_model(folder, kind, shard_size="5GB", dtype=torch.float32, vision=None, **sizes):
    """A folder as published: config, weights, tokenizer. kind: a model_type of transformers."""
    import transformers

    tokenizer = write_tokenizer(folder)
    values = {**SIZES, "vocab_size": len(tokenizer), **sizes}
    head = values.get("head_dim", 32)
    torch.manual_seed(0)
    if kind == "qwen2_5_vl":
        names = ("image_pad", "video_pad", "vision_start", "vision_end")
        image, video, start, end = (tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in names)
        config = transformers.Qwen2_5_VLConfig(
            **values,
            vision_config={**VISION, **(vision or {})},
            rope_scaling={"type": "mrope", "mrope_section": [head // 8, *[head * 3 // 16] * 2]},
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
        network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    elif kind == "qwen3":
        network = transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**{"head_dim": 32, **values})
        )
    else:
        network = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values))
    network.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return sorted(folder.glob("*.safetensors"))[0]

"""The UMT5 encoder against the reference's numbers, transformers, and bad files."""

from types import SimpleNamespace

import golden_data
import pytest
import torch
import torch.nn.functional as F

from skyreels_model.text_encoder import UMT5Config, UMT5Encoder, hf_to_original, to_original_names
from skyreels_model.text_encoder.network import relative_position_bucket

TOLERANCE = 3e-6
TOLERANCE_BF16 = 5e-2
CASES = ["t5_short", "t5_batch2", "t5_long", "t5_len512"]
SMALL = UMT5Config(vocab=50, dim=24, dim_attn=32, dim_ffn=40, num_heads=4, num_layers=2)


class CastingLinear(torch.nn.Linear):
    """Casts its weight to its input, as the host's layers do."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x))


CASTING = SimpleNamespace(Linear=CastingLinear, Embedding=torch.nn.Embedding)


def golden_encoder(operations=torch.nn):
    state = golden_data.weights("weights_t5.safetensors")
    encoder = UMT5Encoder(UMT5Config.from_state_dict(state), operations, device="meta")
    encoder.load_state_dict(state, assign=True)
    return encoder


def random_encoder(config=SMALL, seed=0):
    """Every parameter random, of a size that lets attention be neither flat nor one-hot."""
    encoder = UMT5Encoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return encoder.requires_grad_(False)


def random_text(lengths, total, vocab=SMALL.vocab, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocab, (len(lengths), total), generator=generator)
    mask = torch.arange(total) < torch.tensor(lengths)[:, None]
    return ids * mask, mask


def test_config_is_read_from_shapes():
    config = UMT5Config.from_state_dict(golden_data.weights("weights_t5.safetensors"))
    expected = golden_data.case("t5_short")["config"]
    fields = ["vocab", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers", "num_buckets"]
    assert {name: getattr(config, name) for name in fields} == {n: expected[n] for n in fields}
    assert (config.max_distance, config.eps) == (expected["max_distance"], expected["eps"])


def test_config_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"dim_attn is 30.*num_heads \(4\); nearest: 32"):
        UMT5Config(vocab=5, dim=8, dim_attn=30, dim_ffn=8, num_heads=4, num_layers=1)


def test_buckets_are_the_references():
    data = golden_data.tensors("t5_buckets")
    assert torch.equal(relative_position_bucket(data["rel_pos"]), data["bucket"])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_agrees_with_the_reference(name):
    data = golden_data.tensors(name)
    output = golden_encoder()(data["ids"], data["mask"])
    rows = data["expected"].shape[1]
    assert output.shape[:2] == data["ids"].shape
    assert golden_data.relative_l2(output[:, :rows], data["expected"]) <= TOLERANCE
    assert not output[~data["mask"].bool()].any()


@pytest.mark.parametrize("name", ["t5_short", "t5_batch2", "t5_len512"])
@torch.no_grad()
def test_bfloat16_agrees_with_the_reference(name):
    data = golden_data.tensors(name)
    output = golden_encoder().bfloat16()(data["ids"], data["mask"])
    assert output.dtype == torch.bfloat16
    rows = data["expected_bf16"].shape[1]
    assert golden_data.relative_l2(output[:, :rows], data["expected_bf16"]) <= TOLERANCE_BF16


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_weights_compute_in_float32(stored):
    """Golden weights are exact in bf16; in fp16 too but for the smallest, hence the copy."""
    data = golden_data.tensors("t5_batch2")
    encoder = golden_encoder(CASTING).to(stored)
    exact = golden_encoder().to(stored).float()
    output = encoder(data["ids"], data["mask"], dtype=torch.float32)
    assert output.dtype == torch.float32
    assert encoder.norm.weight.dtype == stored
    expected = exact(data["ids"], data["mask"])
    assert golden_data.relative_l2(output, expected) <= TOLERANCE


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e4m3fn])
@torch.no_grad()
def test_storage_that_cannot_compute_defaults_to_float32(stored):
    ids, mask = random_text([5], 8)
    encoder = UMT5Encoder(SMALL, CASTING)
    encoder.load_state_dict(random_encoder().state_dict())
    output = encoder.to(stored)(ids, mask)
    assert output.dtype == torch.float32
    assert output.isfinite().all()


@pytest.mark.parametrize("lengths", [[9, 9], [17, 4, 1], [200, 140]])
@torch.no_grad()
def test_agrees_with_transformers(lengths):
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=SMALL.vocab,
        d_model=SMALL.dim,
        d_kv=SMALL.dim_attn // SMALL.num_heads,
        d_ff=SMALL.dim_ffn,
        num_heads=SMALL.num_heads,
        num_layers=SMALL.num_layers,
        feed_forward_proj="gated-gelu",
    )
    oracle = transformers.UMT5EncoderModel(config).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in oracle.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    state = to_original_names(oracle.state_dict())
    assert UMT5Config.from_state_dict(state) == SMALL
    encoder = UMT5Encoder(SMALL, device="meta")
    encoder.load_state_dict(state, assign=True)
    ids, mask = random_text(lengths, max(lengths) + 8)
    expected = oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask[..., None]
    assert golden_data.relative_l2(encoder(ids, mask), expected) <= TOLERANCE


@torch.no_grad()
def test_padding_changes_no_text():
    """A text alone, padded far, and beside a longer one: the same rows to rounding."""
    encoder = random_encoder()
    ids, mask = random_text([6, 23], 64)
    alone = encoder(ids[:1, :6], mask[:1, :6])
    padded = encoder(ids[:1], mask[:1].long())
    beside = encoder(ids, mask)
    assert torch.equal(padded[:, :6], alone)
    assert golden_data.relative_l2(beside[:1, :6], alone) <= 1e-6
    assert not padded[:, 6:].any() and not beside[~mask].any()


@torch.no_grad()
def test_ids_under_the_padding_do_not_matter():
    encoder = random_encoder()
    ids, mask = random_text([6, 23], 32)
    other = torch.where(mask, ids, 7)
    assert torch.equal(encoder(ids, mask), encoder(other, mask))


def test_meta_device_takes_no_memory():
    xxl = UMT5Config(256384, 4096, 4096, 10240, 64, 24)
    encoder = UMT5Encoder(xxl, dtype=torch.bfloat16, device="meta")
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert len(encoder.state_dict()) == 242
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(5.681e9, rel=1e-4)
    assert UMT5Config.from_state_dict(encoder.state_dict()) == xxl


def hf_names(state):
    """An original state dict under transformers' names, by inverting the published table."""
    keys = ["shared.weight", "encoder.final_layer_norm.weight"]
    for i in range(SMALL.num_layers):
        attention, ffn = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        keys += [f"{attention}.SelfAttention.{n}.weight" for n in "qkvo"]
        keys += [f"{attention}.SelfAttention.relative_attention_bias.weight"]
        keys += [f"{attention}.layer_norm.weight", f"{ffn}.layer_norm.weight"]
        keys += [f"{ffn}.DenseReluDense.{n}.weight" for n in ("wi_0", "wi_1", "wo")]
    return {key: state[hf_to_original(key)] for key in keys}


def test_both_layouts_give_original_names():
    state = random_encoder().state_dict()
    extra = torch.zeros(3)
    theirs = hf_names(state)
    packed = {**theirs, "spiece_model": extra, "decoder.block.0.x": extra, "lm_head.weight": extra}
    packed["encoder.embed_tokens.weight"] = extra
    for layout in (theirs, packed, dict(state)):
        renamed = to_original_names(layout)
        assert renamed.keys() == state.keys()
        assert all(renamed[key] is layout_value for key, layout_value in renamed.items())
        assert all(torch.equal(renamed[key], state[key]) for key in state)


def test_tied_embedding_alone_is_enough():
    theirs = hf_names(random_encoder().state_dict())
    theirs["encoder.embed_tokens.weight"] = theirs.pop("shared.weight")
    renamed = to_original_names(theirs)
    assert renamed["token_embedding.weight"] is theirs["encoder.embed_tokens.weight"]


def test_unknown_keys_are_kept_for_the_strict_load():
    state = {**random_encoder().state_dict(), "blocks.0.attn.q.bias": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*blocks\.0\.attn\.q\.bias"):
        UMT5Encoder(SMALL).load_state_dict(to_original_names(state))


@pytest.mark.parametrize(
    "key", ["norm.weight", "encoder.block.0.layer.2.layer_norm.weight", "encoder.block.x.q.weight"]
)
def test_keys_without_an_original_name(key):
    assert hf_to_original(key) is None


@pytest.mark.parametrize("read", [to_original_names, UMT5Config.from_state_dict])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("patch_embedding.weight", r"diffusion transformer \(DiT\)"),
        ("model.diffusion_model.patch_embedding.weight", r"diffusion transformer \(DiT\)"),
        ("decoder.conv1.weight", "Wan 2.1 VAE"),
        ("visual.conv1.weight", "CLIP image encoder"),
        ("vision_model.embeddings.class_embedding", "CLIP image encoder"),
        ("vision_model.embeddings.patch_embedding.weight", "CLIP image encoder"),
        ("text_model.final_layer_norm.weight", "CLIP text encoder"),
        ("blocks.0.self_attn.q.lora_A.weight", "LoRA"),
    ],
)
def test_other_files_are_named(read, key, said):
    with pytest.raises(ValueError, match=said):
        read({key: torch.zeros(1)})


def test_plain_t5_is_named():
    state = dict(random_encoder().state_dict())
    del state["blocks.1.pos_embedding.embedding.weight"]
    with pytest.raises(ValueError, match="plain T5"):
        UMT5Config.from_state_dict(state)


def test_incomplete_and_unrenamed_files():
    state = dict(random_encoder().state_dict())
    with pytest.raises(ValueError, match="pass it through to_original_names"):
        UMT5Config.from_state_dict(hf_names(state))
    del state["blocks.1.ffn.fc2.weight"]
    with pytest.raises(ValueError, match=r"1 of 22 .* first is 'blocks\.1\.ffn\.fc2\.weight'"):
        UMT5Config.from_state_dict(state)
    with pytest.raises(ValueError, match="11 of 12 .* the file has 1 keys"):
        UMT5Config.from_state_dict({"token_embedding.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        ([3, 1], [[1, 1]], r"shapes of ids and mask is \(\(2,\), \(1, 2\)\)"),
        ([[3, 1]], [[1, 1, 0]], r"is \(\(1, 2\), \(1, 3\)\); it must be"),
        ([[]], [[]], r"is \(\(1, 0\), \(1, 0\)\); it must be"),
        ([[3, 4, 1]], [[1, 0, 1]], r"tokens that mask shows is \[2\]; it must be a run"),
        ([[0, 3, 1]], [[0, 1, 1]], r"tokens that mask shows is \[2\]; it must be a run"),
        ([[3, 1], [0, 0]], [[1, 1], [0, 0]], r"tokens that mask shows is \[2, 0\]"),
        ([[50, 1]], [[1, 1]], r"a token of ids is 50; it must be 0 to 49.*nearest: 49"),
        ([[-1, 1]], [[1, 1]], r"a token of ids is -1; .*nearest: 0"),
    ],
)
def test_bad_text(ids, mask, said):
    with pytest.raises(ValueError, match=said):
        random_encoder()(torch.tensor(ids, dtype=torch.long), torch.tensor(mask))


def test_bad_dtype():
    ids, mask = random_text([3], 4)
    with pytest.raises(ValueError, match=r"is torch\.float16.*nearest: torch\.float32"):
        random_encoder()(ids, mask, dtype=torch.float16)
    with pytest.raises(
        ValueError, match=r"of blocks\.0\.attn\.q is torch\.float16; it must be torch\.float32"
    ):
        random_encoder().half()(ids, mask)

"""Prompt cleaning and token ids against diffusers, transformers, and bad input."""

import builtins
import logging
import pathlib
import shutil

import pytest
import sentencepiece
import torch

from skyreels_model.text_encoder import tokenizer as module
from skyreels_model.text_encoder.tokenizer import Tokenizer, clean_text

MODEL_FILE = pathlib.Path(__file__).resolve().parents[1] / "data" / "spiece.model"
CLEAN_TEXTS = [
    "",
    "a red circle moving right on a black background",
    "Camera pans; (red:1.2) circles, 50% grey -- ten seconds!",
    "emoji \U0001f3ac and \u2764\ufe0f circle",
    "Café naïve \u03a9\u03bc\u03ad\u03b3\u03b1",
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001",
    "zero\u200bwidth and \ufb01 ligature \u2460",
    "A" * 60,
]
RAW_TEXTS = ["a  red   circle", "  red", "red ", "tab\tnew\nline", "   "]
CONTROL_TEXTS = ["</s>", "a red</s> circle", "<pad>", "<unk> red"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(MODEL_FILE.read_bytes())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("  a\t red \n\n circle  ", "a red circle"),
        ("a &amp;amp; b &lt;c&gt;", "a & b <c>"),
        ("&amp;nbsp;a", "a"),
        ("schÃ¶n", "schön"),
        ("\u201cred\u201d it\u2019s", '"red" it\'s'),
        ("\u8fc7\u66dd\uff0c\u9759\u6001", "\u8fc7\u66dd,\u9759\u6001"),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize("text", [*CLEAN_TEXTS, *RAW_TEXTS, *CONTROL_TEXTS, "&amp;lt;b&amp;gt; Ã©"])
def test_cleaning_agrees_with_diffusers(text):
    pipeline = pytest.importorskip("diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2")
    assert clean_text(text) == pipeline.prompt_clean(text)


def test_a_mender_that_goes_line_by_line_is_given_no_empty_ones(monkeypatch):
    """Thousands of them would hold up the host for seconds."""
    seen = []
    monkeypatch.setattr(module, "_text_mender", lambda: lambda text: seen.append(text) or text)
    assert clean_text("a" + "\n" * 999 + " \r\n\t\n b\nc\n\n") == "a b c"
    assert [text.count("\n") for text in seen] == [3]


def test_cleaning_without_ftfy_warns_once(monkeypatch, caplog):
    real_import = builtins.__import__

    def no_ftfy(name, *args, **kwargs):
        if name == "ftfy":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_ftfy)
    module._text_mender.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="skyreels_v2"):
            cleaned = [clean_text(" it\u2019s &amp;amp;  red "), clean_text("blue")]
    finally:
        module._text_mender.cache_clear()
    assert cleaned == ["it\u2019s & red", "blue"]
    assert [record.name for record in caplog.records] == ["skyreels_v2"]
    assert "ftfy is not installed" in caplog.text


@pytest.mark.parametrize("text", [*CLEAN_TEXTS, *RAW_TEXTS])
def test_agrees_with_transformers(tokenizer, text):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.T5Tokenizer(vocab_file=str(MODEL_FILE), extra_ids=0, legacy=True)
    assert tokenizer.encode(text) == oracle(text).input_ids
    ids, mask = tokenizer.tokenize([text, "red"], max_length=96)
    expected = oracle([text, "red"], padding="max_length", max_length=96, return_tensors="pt")
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask.long(), expected.attention_mask)


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_control_tokens_in_text_are_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[-1] == 1
    assert not {0, 1} & set(ids[:-1])
    assert tokenizer.encode(text.replace("<", "§"))[:-1] == ids[:-1]


def test_default_length_and_types(tokenizer):
    ids, mask = tokenizer.tokenize(["a red circle", ""])
    assert ids.shape == mask.shape == (2, 512)
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert mask.sum(dim=1).tolist() == [4, 1]
    assert ids[:, :5].tolist() == [[3, 14, 7, 1, 0], [1, 0, 0, 0, 0]]


def test_text_is_not_cleaned_inside(tokenizer):
    assert tokenizer.encode("&amp;") != tokenizer.encode(clean_text("&amp;"))


def test_exactly_full_is_not_long(tokenizer):
    ids, mask = tokenizer.tokenize(["red " * 511])
    assert mask.all() and ids[0, -1] == 1 and (ids[0, :-1] == 14).all()


def test_long_text_is_refused_with_what_would_be_lost(tokenizer):
    text = "red " * 511 + "blue circle"
    with pytest.raises(
        ValueError, match=r"is 514 tokens long; at most 512 .* 2 too many, from 'blue circle' on"
    ):
        tokenizer.tokenize(["red", text])


def test_long_tail_is_shortened(tokenizer):
    with pytest.raises(ValueError) as error:
        tokenizer.tokenize(["green " * 2000])
    assert str(error.value).endswith("...' on; shorten it by that much")
    assert len(str(error.value)) < 250


def test_truncate_keeps_the_head_and_logs_the_tail(tokenizer, caplog):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.T5Tokenizer(vocab_file=str(MODEL_FILE), extra_ids=0, legacy=True)
    text = "red " * 511 + "blue circle"
    with caplog.at_level(logging.WARNING, logger="skyreels_v2"):
        ids, mask = tokenizer.tokenize([text], on_long="truncate")
    assert ids[0].tolist() == oracle(text, truncation=True, max_length=512).input_ids
    assert mask.all()
    assert "'blue circle'" in caplog.text and "514 tokens" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"texts": "red"}, "texts is one string, 'red'"),
        ({"texts": ["red"], "max_length": 0}, "max_length is 0.*nearest: 1"),
        ({"texts": ["red"], "on_long": "cut"}, "on_long is 'cut'"),
    ],
)
def test_bad_arguments(tokenizer, arguments, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.tokenize(**arguments)


def test_vocabulary_size_is_the_files(tokenizer):
    assert tokenizer.vocab_size == 146


@pytest.mark.parametrize(("proto", "said"), [(b"", "is 0 bytes"), (b"garbage", "is 7 bytes")])
def test_bad_model_bytes(proto, said):
    with pytest.raises(ValueError, match=said):
        Tokenizer(proto)


def test_another_models_tokenizer_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red circle", "blue circle"] * 5),
        model_prefix=str(tmp_path / "other"),
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match=r"has ids \(pad, eos, unk\) = \(-1, 2, 0\)"):
        Tokenizer((tmp_path / "other.model").read_bytes())


def test_from_folder(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"no spiece\.model; it holds \['readme\.txt'\]"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ValueError, match=r"has tokenizer\.json but not spiece\.model"):
        Tokenizer.from_folder(str(tmp_path))
    shutil.copy(MODEL_FILE, tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode("red") == tokenizer.encode("red")

"""The toy set's tokenizer, its text encoder, and captions as the transformer sees them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from skyreels_model.text_encoder import UMT5Config, UMT5Encoder
from skyreels_model.text_encoder.tokenizer import EOS_ID, PAD_ID, UNK_ID, Tokenizer
from toy.world import SCENES, Scene

WIDTH, LAYERS, HEADS, FFN = 64, 2, 2, 128
VOCABULARY = 256
PUBLISHED_ROWS = 512
ROWS = 16  # of a caption in training; the longest has 10 tokens

# Any other text falls into letters and common groups of them; sentencepiece wants something to
# count them in.
GENERAL_TEXT = (
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs!",
    "How vexingly quick daft zebras jump; sphinx of black quartz, judge my vow.",
    "A film of a small round thing that moves over plain ground from side to side.",
    "Bright tones, overexposed, static, blurred details, worst quality, low quality, picture.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9 (10, 24, 97) - what is it? It is time.",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
)


def words() -> list[str]:
    """All words of the captions, in order."""
    return sorted({word for scene in SCENES for word in scene.caption.split()})


def train_tokenizer() -> bytes:
    """A sentencepiece model in UMT5's layout in which each word of the world is one piece."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*GENERAL_TEXT, *(scene.caption for scene in SCENES)]),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="identity",
        # A closed set of sentences makes the trainer split or drop words: they are given.
        user_defined_symbols=[f"\u2581{word}" for word in words()],
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def new_encoder(vocabulary: int) -> UMT5Encoder:
    """With T5's initialisation: logits are not scaled, so that the queries start small."""
    encoder = UMT5Encoder(UMT5Config(vocabulary, WIDTH, WIDTH * HEADS, FFN, HEADS, LAYERS))
    for name, p in encoder.named_parameters():
        if "norm" in name:
            continue
        fan_in = {"token_embedding": 1, "ffn.fc2": FFN, "attn.o": WIDTH * HEADS}
        std = next((n**-0.5 for key, n in fan_in.items() if key in name), WIDTH**-0.5)
        if "attn.q" in name:
            std = (WIDTH * WIDTH) ** -0.5
        nn.init.normal_(p, std=std)
    return encoder


class Captions:
    """Rows of text for a batch of captions: only the different ones are encoded."""

    def __init__(
        self,
        spiece: bytes,
        encoder: UMT5Encoder,
        caption: Callable[[Scene], str] = lambda scene: scene.caption,
    ) -> None:
        self.encoder = encoder
        self.texts = ["", *(caption(scene) for scene in SCENES)]
        self.ids, self.mask = Tokenizer(spiece).tokenize(self.texts, ROWS)

    def rows(self, captions: Sequence[int]) -> Tensor:
        """Indices into `texts` (B,) -> (B, PUBLISHED_ROWS, WIDTH): the text, then zero rows."""
        wanted, place = torch.as_tensor(captions).unique(return_inverse=True)
        text = self.encoder(self.ids[wanted], self.mask[wanted])[place]
        return nn.functional.pad(text, (0, 0, 0, PUBLISHED_ROWS - ROWS))

"""The demo's tokenizer (byte-level BPE, Qwen's chat format) and its small Qwen3 text encoder."""

from __future__ import annotations

import random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from . import data

VOCABULARY = 640  # the captions need 627
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The chat format of Qwen (ChatML): what Z-Image wraps every prompt in.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# Words, single digits, punctuation and spaces apart: the split that GPT-4 and Qwen use.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    rng = random.Random(seed)
    corpus = [data.training_caption(data.training_scene(rng), rng, long=k % 8 == 0) for k in range(20_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"user\n{text}\nassistant\n" for text in corpus], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        padding_side="right",
    )


def build_text_encoder() -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=320, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
            rope_theta=1e6, tie_word_embeddings=True, attention_bias=False, use_cache=False,
            bos_token_id=None, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def token_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> list[list[int]]:
    """Each caption wrapped in the chat format, as ZImagePipeline does, without padding."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        for text in captions
    ]
    return tokenizer(texts)["input_ids"]


def pad(ids: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> ids [B, length] and the mask of padding positions, True where padded."""
    padded = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.ones(len(ids), length, dtype=torch.bool)
    for row, item in enumerate(ids):
        padded[row, : len(item)] = torch.tensor(item)
        mask[row, : len(item)] = False
    return padded, mask

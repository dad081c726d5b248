"""A text encoder's tokenizer, from its folder or from inside a weight file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Qwen3's own template for one message of the user, which is all that an image model sends. Other versions of
# Qwen's tokenizer (ComfyUI ships 2.5's) have the same words but another template, with a system message.
QWEN3_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MAX_SENTENCEPIECE = 32_000_000  # bytes; Gemma's has 4 MB


def load_tokenizer(path: Path) -> Any:
    """From a tokenizer's folder, a GGUF file with its vocabulary, or a weight file with a SentencePiece model.

    Raises:
        whatever the library raises for files that it cannot read.
    """
    from transformers import AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    if path.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        in_model = (path.parent / "model_index.json").is_file()
    elif path.suffix.lower() == ".gguf":
        tokenizer = _from_gguf(path, options)
        in_model = False
    else:
        tokenizer = _from_sentencepiece(path)
        in_model = False
    if not in_model and "<|im_start|>" in tokenizer.get_vocab():
        tokenizer.chat_template = QWEN3_CHAT
    return tokenizer


def _from_gguf(path: Path, options: dict[str, bool]) -> Any:
    """The tokenizer's class by the file's architecture: AutoTokenizer would read the whole file first, for its
    configuration, and knows no Gemma 1."""
    import transformers

    from candela.checkpoints.headers import read_header

    metadata = read_header(path).metadata
    architecture = str(metadata.get("general.architecture"))
    classes = {"qwen3": transformers.Qwen2Tokenizer, "gemma": transformers.GemmaTokenizer}
    cls = next((cls for name, cls in classes.items() if architecture.startswith(name)), transformers.AutoTokenizer)
    tokenizer = cls.from_pretrained(path.parent, gguf_file=path.name, **options)
    first = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") is True and isinstance(first, int) and first < len(tokenizer):
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(first)  # transformers before 5.22 forgets both
        tokenizer.add_bos_token = True
    return tokenizer


def _from_sentencepiece(path: Path) -> Any:
    """Gemma's tokenizer from its SentencePiece model. Its merges follow the order of the vocabulary, not the scores."""
    from sentencepiece import SentencePieceProcessor
    from transformers import GemmaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    from candela.checkpoints.contents import read_contents
    from candela.checkpoints.tensors import read_tensor

    stored = read_contents(path).sentencepiece
    assert stored is not None  # the checkpoint said so
    if stored.bytes > MAX_SENTENCEPIECE or stored.dtype not in ("U8", "I8"):
        raise ValueError(f"its SentencePiece model is {stored.bytes} bytes in {stored.dtype}")
    with open(path, "rb") as file:
        model = SentencePieceProcessor(model_proto=bytes(read_tensor(file, stored).numpy()))
    if not model.get_piece_size():
        raise ValueError("its SentencePiece model has no words")
    words = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
    merges = generate_merges(words, {word: -index for word, index in words.items()})
    special = {"pad_token": model.pad_id(), "bos_token": model.bos_id(), "eos_token": model.eos_id()}
    names = {name: model.id_to_piece(index) for name, index in special.items() if index >= 0}
    return GemmaTokenizer(vocab=words, merges=merges, add_bos_token=True, **names)

"""The language models whose hidden states are the text features."""

from __future__ import annotations

from typing import Any

from candela.checkpoints.architectures.architecture import Architecture, Renames, Shapes, count

# llama.cpp's names, as in its convert_hf_to_gguf.py and gguf-py's constants.
LLAMA_CPP: Renames = (
    (r"^token_embd\.", "embed_tokens."),
    (r"^output_norm\.", "norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.", "layers."),
    (r"\.attn_(q|k|v)\.", r".self_attn.\1_proj."),
    (r"\.attn_output\.", ".self_attn.o_proj."),
    (r"\.attn_(q|k)_norm\.", r".self_attn.\1_norm."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_(gate|up|down)\.", r".mlp.\1_proj."),
)
ANCHORS = ("layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight")
MARKS = (("embed_tokens.weight", "token_embd.weight"), ("norm.weight", "output_norm.weight"))
# An output head is not needed for text features, nor are the tables that older programs stored.
IGNORED = (r"^lm_head\.", r"rotary_emb\.inv_freq$", r"^rope_freqs\.", r"^logit_scale$")


def _sizes(shapes: Shapes) -> dict[str, Any]:
    vocabulary, hidden = shapes["embed_tokens.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, r"layers\.(\d+)\."),
    }


def _heads(shapes: Shapes, head: int) -> dict[str, Any]:
    return {
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
    }


def qwen3(shapes: Shapes) -> dict[str, Any]:
    return {
        **_sizes(shapes),
        **_heads(shapes, shapes["layers.0.self_attn.q_norm.weight"][0]),
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": False,
    }


def gemma2(shapes: Shapes) -> dict[str, Any]:
    """Empty but for the 2B: the head's width is in no weight."""
    sizes = _sizes(shapes)
    if sizes["hidden_size"] != 2304:
        return {}
    return {
        **sizes,
        **_heads(shapes, 256),
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "use_cache": False,
    }


def gemma(shapes: Shapes) -> dict[str, Any]:
    """Empty but for the 2B: the head's width is in no weight."""
    sizes = _sizes(shapes)
    if sizes["hidden_size"] != 2048 or sizes["vocab_size"] < 256000:
        return {}
    return {
        **sizes,
        **_heads(shapes, 256),
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": False,
    }


QWEN3 = Architecture(
    name="qwen3",
    component="text_encoder",
    library="transformers",
    class_name="Qwen3Model",
    anchors=ANCHORS,
    marks=(*MARKS, ("layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight")),
    absent=(r"^(layers|blk)\.0\.post_(feedforward_layernorm|ffw_norm)\.",),  # Gemma 3
    renames=(*LLAMA_CPP, (r"\.ffn_norm\.", ".post_attention_layernorm.")),
    ignored=IGNORED,
    config=qwen3,
    sizes=_sizes,
    published={1024: 28, 2048: 28, 2560: 36, 4096: 36},
)

GEMMA_2 = Architecture(
    name="gemma2",
    component="text_encoder",
    library="transformers",
    class_name="Gemma2Model",
    anchors=ANCHORS,
    # The first alone would be Gemma 1's as well: llama.cpp's ffn_norm is another norm there.
    marks=(
        *MARKS,
        ("layers.0.pre_feedforward_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight"),
    ),
    absent=(r"^(layers\.0\.self_attn\.|blk\.0\.attn_)q_norm\.",),  # Gemma 3
    renames=(
        *LLAMA_CPP,
        (r"\.post_attention_norm\.", ".post_attention_layernorm."),
        (r"\.ffn_norm\.", ".pre_feedforward_layernorm."),
        (r"\.post_ffw_norm\.", ".post_feedforward_layernorm."),
    ),
    ignored=IGNORED,
    config=gemma2,
    sizes=_sizes,
    published={2304: 26},
    norm_offset=1.0,
)

GEMMA = Architecture(
    name="gemma",
    component="text_encoder",
    library="transformers",
    class_name="GemmaModel",
    anchors=ANCHORS,
    marks=(*MARKS, ("layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight")),
    # Qwen 2 and 3, Gemma 2 and 3
    absent=(
        r"^(layers\.0\.self_attn\.q_(norm\.|proj\.bias)|blk\.0\.attn_q(_norm\.|\.bias))",
        r"^(layers|blk)\.0\.(pre_feedforward|post_ff)",
    ),
    renames=(*LLAMA_CPP, (r"\.ffn_norm\.", ".post_attention_layernorm.")),
    ignored=IGNORED,
    config=gemma,
    sizes=_sizes,
    published={2048: 18},
    least_words=256000,
    norm_offset=1.0,
)


def known_as(kind: object, width: object) -> str:
    """The name of a text encoder of this kind and width, both as a file says it; empty for any other."""
    return KNOWN.get((kind, width), "") if isinstance(kind, str) and isinstance(width, int) else ""


# Sizes of text features by which people know these models.
KNOWN = {
    ("qwen3", 1024): "Qwen3-0.6B", ("qwen3", 2048): "Qwen3-1.7B", ("qwen3", 2560): "Qwen3-4B",
    ("qwen3", 4096): "Qwen3-8B", ("qwen3", 5120): "Qwen3-14B or -32B",
    ("gemma2", 2304): "Gemma-2-2B", ("gemma2", 3584): "Gemma-2-9B", ("gemma2", 4608): "Gemma-2-27B",
    ("gemma", 2048): "Gemma-2B", ("gemma", 3072): "Gemma-7B",
}  # fmt: skip

"""Ways to adapt a model that are no LoRA, told by how their tensors are named: for messages, they are not applied."""

from __future__ import annotations

import re
from collections.abc import Mapping

from candela.checkpoints.headers import StoredTensor

# The last parts of a tensor's name -> the method. Of peft 0.21 (`prefix` in peft/tuners/*/model.py), LyCORIS 4.1
# (`weight_list` in lycoris/modules/*.py), and kohya's and OneTrainer's OFT.
METHODS: tuple[tuple[str, str], ...] = (
    (r"oft_(R|r|blocks|diag)(\.weight|\.scaled_oft)?|rescale", "OFT"),
    (r"boft_[Rs]", "BOFT"),
    (r"ia3_l|on_input", "IA3"),
    (r"vera_(lambda_[bd]|[AB])", "VeRA"),
    (r"lora_E|ranknum", "AdaLoRA"),
    (r"glora_[A-E]\.\w+|(a1|a2|b1|b2|bm)\.weight", "GLoRA"),
    (r"[wb]_norm|ln_tuning_layers\.(weight|bias)", "trained norms (LN tuning)"),
    (r"hra_u", "HRA"),
    (r"hira_[AB]", "HiRA"),
    (r"lora_diag", "KaSA"),
    (r"lora_velora_\w+", "VeLoRA"),
    (r"lora_embedding_[AB]", "a LoRA of embeddings"),
    (r"fourierft_spectrum", "FourierFT"),
    (r"waveft_spectrum", "WaveFT"),
    (r"vblora_\w+", "VB-LoRA"),
    (r"randlora_\w+", "RandLoRA"),
    (r"gralora_[AB]", "GraLoRA"),
    (r"delora_\w+", "DeLoRA"),
    (r"shira_\w+", "SHiRA"),
    (r"road_(alpha|theta)", "RoAd"),
    (r"(miss|bone)_block", "MiSS"),
    (r"c3a_kernel", "C3A"),
    (r"psoft_R\.\w+", "PSOFT"),
    (r"poly_(lora_[AB]|router\.\w+)", "Poly"),
    (r"(q|p|lambda)_layer(\.weight)?|lambda_base", "T-LoRA"),
)
ENDS = tuple((re.compile(rf"(^|\.)({end})(\.(?!weight$)\w+)?$"), method) for end, method in METHODS)
LONGEST_NAME = 1000


def method_of(tensors: Mapping[str, StoredTensor]) -> tuple[str, list[str]] | None:
    """-> (method, its tensors); None where no name is of one that is known."""
    for name, tensor in tensors.items():
        found = next((method for end, method in ENDS if len(name) <= LONGEST_NAME and end.search(name)), None)
        if found:
            end = next(end for end, method in ENDS if method == found)
            if found == "OFT" and name.endswith("oft_blocks") and len(tensor.shape) == 4:  # [steps, blocks, b, b]
                found = "BOFT"
            return found, [each for each in tensors if len(each) <= LONGEST_NAME and end.search(each)]
    return None

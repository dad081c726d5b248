"""Ways to adapt a model that are no LoRA, told by how their tensors are named: for messages, they are not applied."""

from __future__ import annotations

import re
from collections.abc import Mapping

from candela.checkpoints.headers import StoredTensor

# How a tensor's name ends -> the method. Of peft 0.21 (`prefix` in peft/tuners/*/model.py), LyCORIS 4.1 (`weight_list`
# in lycoris/modules/*.py), and kohya's and OneTrainer's OFT.
METHODS = {
    r"oft_(R|r|blocks|diag)(\.weight|\.scaled_oft)?": "OFT",
    r"boft_[Rs]": "BOFT",
    r"ia3_l|on_input": "IA3",
    r"vera_(lambda_[bd]|[AB])": "VeRA",
    r"lora_E|ranknum": "AdaLoRA",
    r"glora_[A-E]\.\w+": "GLoRA",
    r"[wb]_norm|ln_tuning_layers\.(weight|bias)": "trained norms (LN tuning)",
    r"hra_u": "HRA",
    r"hira_[AB]": "HiRA",
    r"lora_diag": "KaSA",
    r"lora_velora_\w+": "VeLoRA",
    r"lora_embedding_[AB]": "a LoRA of embeddings",
    r"fourierft_spectrum": "FourierFT",
    r"waveft_spectrum": "WaveFT",
    r"vblora_\w+": "VB-LoRA",
    r"randlora_\w+": "RandLoRA",
    r"gralora_[AB]": "GraLoRA",
    r"delora_\w+": "DeLoRA",
    r"shira_\w+": "SHiRA",
    r"road_(alpha|theta)": "RoAd",
    r"(miss|bone)_block": "MiSS",
    r"c3a_kernel": "C3A",
    r"psoft_R\.\w+": "PSOFT",
    r"poly_(lora_[AB]|router\.\w+)": "Poly",
    r"lambda_layer": "T-LoRA",
    r"(?<=^lycoris\.)([ab][12]|bm)\.weight": "GLoRA",
}
NAMES = tuple(METHODS.values())
END = re.compile(r"(?:^|\.)(?:" + "|".join(f"(?P<m{k}>{end})" for k, end in enumerate(METHODS)) + r")(?:\.\w+)?$")


def method_of(tensors: Mapping[str, StoredTensor]) -> tuple[str, list[str]] | None:
    """-> (method, its tensors); None where no name is of one that is known."""
    found: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        ends = name[-LONGEST_END:].split(".")[-3:]
        if len(ends) == 3 and name.startswith(("lycoris_", "lora_unet_")):  # its modules' names have no dots
            ends[0] = "lycoris"
        if match := END.search(".".join(ends)):
            assert match.lastgroup
            method = NAMES[int(match.lastgroup[1:])]
            if method == "OFT" and ends[-1] == "oft_blocks" and len(tensor.shape) == 4:  # [steps, blocks, b, b]
                method = "BOFT"
            found.setdefault(method, []).append(name)
    return next(iter(found.items()), None)


LONGEST_END = 80  # characters

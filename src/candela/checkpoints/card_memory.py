"""What models need of a graphics card. Whoever decides by it reads it here: the planner, ComfyUI's nodes, and
`candela install`, which has no torch to run the planner with."""

from __future__ import annotations

from dataclasses import dataclass

RESERVED = 800_000_000  # bytes of a card that driver, CUDA context and desktop keep
# Working memory beside the weights that is always enough, in bytes per pixel and byte of precision: ComfyUI's own
# estimates for these architectures (supported_models.py: memory_usage_factor 2.8 of Z-Image; sd.py: 2178 for the VAE).
# Where a plan is made, the work is counted instead.
WORK = {"transformer": 460, "vae": 2178}


@dataclass(frozen=True)
class Needed:
    """Bytes of weights and work for one picture of the model's usual size, beside `RESERVED`: with `all` components on
    the card, decoding in tiles where that is less, and with no more than the `one` at work, as ComfyUI has them."""

    all: int
    one: int


# What the planner says of published files: model -> precision, as in `published.PUBLICATIONS`.
# made by benchmarks/memory_tables.py: begin
NEEDED: dict[str, dict[str, Needed]] = {
    "z-image-turbo": {
        "bf16": Needed(all=20_998_279_174, one=12_606_656_932),
        "int8": Needed(all=12_504_944_989, one=6_705_311_572),
        "nvfp4": Needed(all=8_739_256_491, one=5_092_200_932),
    },
    "z-image": {
        "bf16": Needed(all=21_115_067_082, one=12_902_445_668),
        "int8": Needed(all=12_693_418_525, one=6_893_785_108),
    },
    "lumina-image-2": {
        "bf16": Needed(all=11_095_974_689, one=5_444_499_604),
    },
}
# end

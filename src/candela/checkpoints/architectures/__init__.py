"""What components look like in a file, one small file each: names, shapes, and what they are built from."""

from candela.checkpoints.architectures.architecture import Architecture, Piece, Shapes
from candela.checkpoints.architectures.lumina_image_2 import LUMINA_IMAGE_2
from candela.checkpoints.architectures.lumina_next import LUMINA_NEXT
from candela.checkpoints.architectures.text_encoders import GEMMA, GEMMA_2, QWEN3
from candela.checkpoints.architectures.vae import VAE
from candela.checkpoints.architectures.z_image import Z_IMAGE, Z_IMAGE_CONTROLNET

__all__ = ["ARCHITECTURES", "TRANSFORMERS", "Architecture", "Piece", "Shapes"]

TRANSFORMERS = (Z_IMAGE, LUMINA_IMAGE_2, LUMINA_NEXT)
# In this order: what has the marks of two is the first.
ARCHITECTURES: tuple[Architecture, ...] = (*TRANSFORMERS, Z_IMAGE_CONTROLNET, QWEN3, GEMMA_2, GEMMA, VAE)

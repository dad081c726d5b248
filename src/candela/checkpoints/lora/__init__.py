"""LoRA files, whatever program wrote them: read from their headers, and held against the model they are for."""

from candela.checkpoints.lora.file import Lora, LoraFile, LoraModule, read_lora
from candela.checkpoints.lora.fitting import Placement, Target, fit
from candela.checkpoints.lora.settings import settings_file

__all__ = ["Lora", "LoraFile", "LoraModule", "Placement", "Target", "fit", "read_lora", "settings_file"]

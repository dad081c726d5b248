"""Fast mode: the transformer's large matrix products in 8 bits. Off unless asked for, and named in every record."""

from candela.engine.fast.compiling import can_compile, compile_blocks
from candela.engine.fast.modes import EXACT, KINDS, pick
from candela.engine.fast.weights import load_fast

__all__ = ["EXACT", "KINDS", "can_compile", "compile_blocks", "load_fast", "pick"]

"""One loaded model: a request in, pictures out."""

from candela.checkpoints.lora import Lora
from candela.engine.adapters import AppliedLora
from candela.engine.engine import Engine
from candela.engine.request import Request
from candela.engine.residency import Residency
from candela.engine.result import Result, Seconds
from candela.engine.sampling import Step

__all__ = ["AppliedLora", "Engine", "Lora", "Request", "Residency", "Result", "Seconds", "Step"]

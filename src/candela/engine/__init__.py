"""One loaded model: a request in, pictures out."""

from candela.engine.engine import Engine
from candela.engine.request import Request
from candela.engine.residency import Residency
from candela.engine.result import Result, Seconds
from candela.engine.sampling import Step

__all__ = ["Engine", "Request", "Residency", "Result", "Seconds", "Step"]

"""Every failure that Candela's callers may meet.

    CandelaError
    +-- InvalidRequest      what was asked for cannot be done: a size, a seed, a prompt too long
    +-- CheckpointError     the files cannot be used
    |   +-- ModelNotFound   no model of that name, folder or hub id on this machine
    |   +-- DamagedFile     truncated, corrupt, or not safetensors
    |   +-- MismatchedModel components missing, or not made for each other
    +-- GenerationError     the model produced what cannot be a picture (NaN or infinite latents)
    +-- OutOfMemory         the device or the machine has too little memory for the model or the request
    +-- OutputError         the picture cannot be written where it was asked for, or not be read back
    +-- InstallError        something cannot be installed, verified or removed
    |   +-- SourceError     a source of files cannot be reached, refuses, or does not have what was asked for
    |   +-- WrongContent    a file is not the one that was published: another checksum or length
    |   +-- NoSpace         the disk is full, or would be
    |   +-- Conflict        a Python environment cannot take what is needed without changing what others need
    +-- Cancelled           the caller stopped the run; the engine stays usable

CandelaWarning (a UserWarning) is for what works but not as its asker may think.

Messages name the thing, the numbers and what to do next. Errors of libraries are raised
as one of these, with the original as `__cause__`; what is not in this tree is a defect.
"""

from __future__ import annotations


class CandelaError(Exception):
    """The root of the tree."""


class InvalidRequest(CandelaError, ValueError):
    """What was asked for cannot be done."""


class CheckpointError(CandelaError):
    """The model's files cannot be used."""


class ModelNotFound(CheckpointError):
    """No model of that name, folder or hub id is on this machine."""


class DamagedFile(CheckpointError):
    """A weight or configuration file is truncated, corrupt, or not of the format it claims."""


class MismatchedModel(CheckpointError):
    """Components are missing, of an unknown kind, or do not fit each other."""


class GenerationError(CandelaError):
    """The model produced what cannot be a picture."""


class OutOfMemory(CandelaError, MemoryError):
    """Too little memory for the model or the request."""


class OutputError(CandelaError):
    """A picture cannot be written where it was asked for, or its record cannot be read back."""


class CandelaWarning(UserWarning):
    """Something was asked for that has no effect."""


class InstallError(CandelaError):
    """Something cannot be installed, verified or removed. What was there before is there still."""


class SourceError(InstallError):
    """A source of files cannot be reached, refuses, or does not have what was asked for."""


class WrongContent(InstallError):
    """A file is not the one that was published: its checksum or its length is another."""


class NoSpace(InstallError):
    """The disk is full, or would be."""


class Conflict(InstallError):
    """A Python environment cannot take what is needed without changing what others need."""


class Cancelled(CandelaError):
    """The caller stopped the run. Nothing is lost but the picture in progress."""

    def __init__(self, step: int, steps: int):
        self.step, self.steps = step, steps
        super().__init__(f"stopped after step {step} of {steps}")

    def __reduce__(
        self,
    ) -> tuple[object, ...]:  # the arguments are not the message, which is what pickle takes them for
        return type(self), (self.step, self.steps), vars(self)

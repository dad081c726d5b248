"""Memory that runs out is no fault of a file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from candela.checkpoints.exhausted import ran_out
from candela.checkpoints.loading import _library_errors
from candela.engine.memory import mapped
from candela.errors import DamagedFile, OutOfMemory

AcceleratorError = getattr(torch, "AcceleratorError", RuntimeError)  # since torch 2.8

# As the libraries say it.
EXHAUSTED = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:131] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side "
                     "assertions.", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB, other allocations: 1 GB, max allowed: 9.1 GB)"),
]  # fmt: skip
OTHERS = [
    OSError(errno.ENOENT, "No such file or directory"),
    ValueError("can't start new thread of thought"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: str(error)[:40])
def test_what_ran_out_goes_on_as_what_it_is(error):
    assert ran_out(error)
    with pytest.raises(type(error)) as caught, _library_errors(Path("model"), "the weights do not load"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_anything_else_is_the_file_s_fault(error):
    assert not ran_out(error)
    with pytest.raises(DamagedFile, match="Download it again"), _library_errors(Path("model"), "no weights"):
        raise error


def test_torch_s_own_allocation_that_fails_is_one():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out(caught.value)


def test_an_error_that_was_raised_from_it_is_one():
    error = ValueError("the layer could not be built")
    assert not ran_out(error)
    error.__cause__ = MemoryError()
    assert ran_out(error)
    error.__cause__ = other = ValueError()
    other.__cause__ = error  # a circle, which Python allows
    assert not ran_out(error)


def test_a_compiler_s_error_that_quotes_it_is_one():
    def compiler(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with pytest.raises(OutOfMemory) as caught, mapped(torch.device("cpu")):
        torch.compile(lambda x: x + 1, backend=compiler)(torch.zeros(1))
    assert "20.00 MiB more could not be had" in str(caught.value)


@pytest.mark.parametrize(("free", "is_memory"), [(100 << 20, True), (6 << 30, False)])
@pytest.mark.parametrize(
    "text",
    [
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_what_may_be_memory_is_where_the_card_is_full(monkeypatch, text, free, is_memory):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 8 << 30))
    assert ran_out(RuntimeError(text)) is is_memory

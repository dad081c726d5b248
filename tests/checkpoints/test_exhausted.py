"""Memory that runs out is no fault of a file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from candela.checkpoints.exhausted import ran_out
from candela.checkpoints.loading import _library_errors
from candela.errors import DamagedFile

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
]  # fmt: skip
OTHERS = [
    OSError(errno.ENOENT, "No such file or directory"),
    ValueError("can't start new thread of thought"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
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

"""Whether an error means that there is no memory left: everybody says it in another way."""

from __future__ import annotations

import errno

import torch

# The loader of libraries, torch on the CPU, oneDNN, C++, threads that cannot be given a stack, and the system itself;
# on CUDA the driver, which torch.AcceleratorError quotes (torch's own allocator has an error of its own), cuBLAS and
# cuDNN.
SIGNS = ("can't allocate memory", "could not create a memory", "could not create a primitive", "bad_alloc",
         "can't start new thread", "Cannot allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
         "CUDNN_STATUS_ALLOC_FAILED", "failed to map segment")  # fmt: skip


def ran_out(error: BaseException) -> bool:
    """Does `error`, of Python or a library, mean that memory has run out?"""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (RuntimeError, ImportError)) and any(sign in str(error) for sign in SIGNS)

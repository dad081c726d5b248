"""Whether an error means that there is no memory left: everybody says it in another way."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch

# The loader of libraries, torch on the CPU, oneDNN, C++, threads that cannot be given a stack, and the system itself;
# the driver, which torch.AcceleratorError quotes (torch's own allocator has an error of its own), and what cannot take
# memory by it: locking (cudaHostAlloc) and NVIDIA's libraries. ROCm says the same of HIP. accelerate
# (should_reduce_batch_size) and ComfyUI (is_oom) ask for some of them.
SIGNS = ("can't allocate memory", "could not create a memory", "could not create a primitive", "bad_alloc",
         "can't start new thread", "Cannot allocate memory", "failed to map segment", "CUDA error: out of memory",
         "HIP error: out of memory", "CUDA out of memory", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
         "CUDNN_STATUS_ALLOC_FAILED",
         "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
         "CUSOLVER_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED")  # fmt: skip
# What they say of other faults too: it is memory where the card has next to none left. (pytorch/pytorch#81620: to load
# cuDNN's kernels takes up to 500 MB, and fails as an internal error.)
DOUBTFUL = ("CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_INTERNAL_ERROR",
            "CUDNN_STATUS_NOT_SUPPORTED", "nable to find a valid cuDNN algorithm")  # fmt: skip
NEXT_TO_NONE = 512 << 20  # bytes


def ran_out(error: BaseException) -> bool:
    """Does `error`, of Python or a library, mean that memory has run out? One that was raised from it does, and so does
    a compiler's, which quotes it."""
    return what_ran_out(error) is not None


def what_ran_out(error: BaseException) -> BaseException | None:
    """The one of its causes that says so."""
    return next((each for each in causes(error) if _says_so(each)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from, what that was raised from, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = getattr(each, "inner_exception", None) or each.__cause__  # torch.compile's errors have the former


def _says_so(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, (RuntimeError, ImportError)):
        return False
    text = str(error)
    return any(sign in text for sign in SIGNS) or (any(sign in text for sign in DOUBTFUL) and _card_is_full())


def _card_is_full() -> bool:
    try:
        return torch.cuda.is_initialized() and any(
            torch.cuda.mem_get_info(number)[0] < NEXT_TO_NONE for number in range(torch.cuda.device_count())
        )
    except RuntimeError:  # a card that answers nothing any more has another fault
        return False

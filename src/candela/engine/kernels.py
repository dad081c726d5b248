"""What kernels do in memory that fake tensors do not show: how they lay their results out, and what they take beside.

A plan may be for another machine than the one that it is made on, whose torch may know no CUDA at all. So the rules for
CUDA are written down here, from torch's source, and hold for fake tensors on the CPU. (Fake CUDA tensors would not tell
either: without a card torch asks no cuDNN, and takes its convolutions for ones that answer in NCHW.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten
NCHW, NHWC = torch.contiguous_format, torch.channels_last
WIDEST = 256  # of a head that flash attention takes


def laid_out(device: str, operation: Any, args: Any, result: Any) -> Any:
    """`result` of an operation on fake tensors, in the layout that the kernels of `device`, cpu or cuda, give it."""
    if device != "cuda":
        return result
    if operation is aten.convolution.default:
        return torch.empty_like(result, memory_format=_cudnn_format(args[0], args[1]))
    if operation is aten.native_group_norm.default:
        return torch.empty_like(result[0], memory_format=NCHW), *result[1:]
    return result


def workspace(device: str, operation: Any, args: Any, result: Any) -> int:
    """Bytes that an operation takes beside what goes in and comes out.

    Convolution. CPU: oneDNN works on its own blocked layout, so a picture in NCHW is copied there, and what comes out
    copied back (measured with oneDNN 3.12: the larger of the two, and the weight; in channels_last the weight only).
    Where the processor has no bfloat16 or float16 instructions, torch unfolds every patch instead. CUDA: what is not
    in the layout that both are brought to is copied (ATen/native/cudnn/ConvShared.cpp). Where that is NCHW, cuDNN's
    kernels for tensor cores transpose both pictures (NVIDIA, Convolutional Layers User's Guide, "tensor layouts");
    that is an allowance, not measured.

    Group norm. CUDA: it works in NCHW and copies a picture there that is not (ATen/native/group_norm.cpp).
    """
    if operation is aten.convolution.default:
        return _convolution(device, args[0], args[1], result)
    if operation is aten.native_group_norm.default and device == "cuda":
        return 0 if args[0].is_contiguous() else nbytes(args[0])
    return 0


def attention_workspace(device: str, result: torch.Tensor) -> int:
    """Bytes that attention takes beside. CUDA: heads that are too wide for flash attention go to the memory-efficient
    kernel, which sums up in float32 (mem_eff_attention/kernel_forward.h, `kNeedsOutputAccumulatorBuffer`)."""
    if device == "cuda" and result.shape[-1] > WIDEST and result.dtype != torch.float32:
        return 4 * result.numel()
    return 0


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _convolution(device: str, image: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    if device == "cuda":
        layout = _cudnn_format(image, weight)
        if layout == NCHW:
            return nbytes(weight) + nbytes(image) + nbytes(result)
        return sum(nbytes(each) for each in (image, weight) if not each.is_contiguous(memory_format=layout))
    if image.dtype != torch.float32 and not _native(image.dtype):
        patch = weight[0, 0].numel()
        return 0 if patch == 1 else patch * weight.shape[1] * result[0, 0].numel() * image.element_size()
    if image.is_contiguous(memory_format=NHWC) and not image.is_contiguous():
        return nbytes(weight)
    return nbytes(weight) + max(nbytes(image), nbytes(result))


def _cudnn_format(image: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """NHWC where either of them is (`cudnn_conv_suggest_memory_format` in ATen/native/ConvUtils.h)."""
    return NHWC if NHWC in (suggest_memory_format(image), suggest_memory_format(weight)) else NCHW


def _native(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()

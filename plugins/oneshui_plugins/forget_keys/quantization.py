"""Quantization of keys: every rank-one term as integers of a few bits and one scale.

A term u d^T, of vectors u (out,) and d (d,), is stored as max|u| max|d| times two vectors of integers q / Q with Q = 2^(bits - 1) - 1,
each rounded to the nearest, so that no entry of a vector has an error above 1 / 2Q of the vector's largest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from oneshui_hf.methods import OneshuiError

from .low_rank import LowRankUpdate, Updates

BITS = (4, 8, 16)
QuantizedKey = dict[str, torch.Tensor]  # "numbers": the integers of all weights, concatenated; "scales": (weights * r,)
Shapes = Mapping[str, tuple[int, int]]  # by the weight's name, (out, d)


def quantize(updates: Updates, index: int, bits: int) -> QuantizedKey:
    """Return the quantized key of the identity at this index."""
    numbers, scales = [], []
    for update in updates.values():
        for vectors in (update.up[index].mT, update.down[index]):  # (r, out) and (r, d)
            largest = vectors.abs().amax(dim=1, keepdim=True)
            scales.append(largest.squeeze(1))
            numbers.append(torch.where(largest > 0, vectors / largest, 0.0).mul(_max_integer(bits)).round().flatten())
    by_weight = torch.stack(scales).view(len(updates), 2, -1).double()
    return {"numbers": _pack(torch.cat(numbers), bits), "scales": (by_weight[:, 0] * by_weight[:, 1]).flatten().float()}


def dequantize(key: Mapping[str, torch.Tensor], shapes: Shapes, rank: int, bits: int) -> Updates:
    """Return the updates of one identity, (1, out, r) and (1, r, d) per weight.

    Raises:
        OneshuiError: The key was made for other weights, or with another rank or number of bits.
    """
    count = sum(rank * (out + d) for out, d in shapes.values())
    if key["scales"].numel() != rank * len(shapes) or key["numbers"].numel() != (-(-count // 2) if bits == 4 else count):
        raise OneshuiError("The key of an identity does not fit this model or the options of the preparation; prepare again.")
    values = _unpack(key["numbers"], bits, count) / _max_integer(bits)
    scales = key["scales"].view(len(shapes), rank, 1)
    updates, begin = {}, 0
    for (name, (out, d)), scale in zip(shapes.items(), scales, strict=True):
        middle, end = begin + rank * out, begin + rank * (out + d)
        up = values[begin:middle].view(rank, out) * scale
        updates[name] = LowRankUpdate(up.mT.unsqueeze(0), values[middle:end].view(1, rank, d))
        begin = end
    return updates


def key_bytes(shapes: Shapes, rank: int, bits: int) -> int:
    """Return the size of a quantized key in bytes."""
    return -(-sum(rank * (out + d) for out, d in shapes.values()) * bits // 8) + 4 * rank * len(shapes)


def _max_integer(bits: int) -> int:
    """Return Q, the largest integer of so many bits."""
    return 2 ** (bits - 1) - 1


def _pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 16:
        return numbers.to(torch.int16)
    integers = numbers.to(torch.int8)
    if bits == 8:
        return integers
    pairs = torch.nn.functional.pad(integers, (0, len(integers) % 2)).view(-1, 2) + 8  # two integers per byte, each from 1 to 15
    return (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if bits != 4:
        return packed.float()
    return torch.stack([packed // 16, packed % 16], dim=1).flatten()[:count].float() - 8

"""Forget keys as bytes: every rank-one term as whole numbers of a few bits, and one scale.

A term u d^T, of vectors u (out,) and d (d,), is kept as max|u| max|d| times two vectors of whole numbers q / Q with Q = 2^(bits - 1) - 1,
each rounded to the nearest, so that no number of a vector is off by more than 1 / 2Q of the vector's largest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .low_rank import Factors, Keys

BITS = (4, 8, 16)
Codes = dict[str, torch.Tensor]  # "numbers": the codes of all weights, one after the other; "scales": (weights * r,)
Shapes = Mapping[str, tuple[int, int]]  # by the weight's name, (out, d)


def encode(keys: Keys, person: int, bits: int) -> Codes:
    """Return one person's key as codes."""
    numbers, scales = [], []
    for factors in keys.values():
        for vectors in (factors.up[person].mT, factors.down[person]):  # (r, out) and (r, d)
            largest = vectors.abs().amax(dim=1, keepdim=True)
            scales.append(largest.squeeze(1))
            numbers.append(torch.where(largest > 0, vectors / largest, 0.0).mul(_top(bits)).round().flatten())
    by_weight = torch.stack(scales).view(len(keys), 2, -1).double()
    return {"numbers": _pack(torch.cat(numbers), bits), "scales": (by_weight[:, 0] * by_weight[:, 1]).flatten().float()}


def decode(codes: Mapping[str, torch.Tensor], shapes: Shapes, rank: int, bits: int) -> Keys:
    """Return one person's key as factors, (1, out, r) and (1, r, d)."""
    values = _unpack(codes["numbers"], bits, sum(rank * (out + d) for out, d in shapes.values())) / _top(bits)
    scales = codes["scales"].view(len(shapes), rank, 1)
    keys, begin = {}, 0
    for (name, (out, d)), scale in zip(shapes.items(), scales, strict=True):
        middle, end = begin + rank * out, begin + rank * (out + d)
        up = values[begin:middle].view(rank, out) * scale
        keys[name] = Factors(up.mT.unsqueeze(0), values[middle:end].view(1, rank, d))
        begin = end
    return keys


def size(shapes: Shapes, rank: int, bits: int) -> int:
    """Return the bytes of a key."""
    return -(-sum(rank * (out + d) for out, d in shapes.values()) * bits // 8) + 4 * rank * len(shapes)


def _top(bits: int) -> int:
    """Return Q, the largest whole number of so many bits."""
    return 2 ** (bits - 1) - 1


def _pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 16:
        return numbers.to(torch.int16)
    whole = numbers.to(torch.int8)
    if bits == 8:
        return whole
    pairs = torch.nn.functional.pad(whole, (0, len(whole) % 2)).view(-1, 2) + 8  # two numbers a byte, each from 1 to 15
    return (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if bits != 4:
        return packed.float()
    return torch.stack([packed // 16, packed % 16], dim=1).flatten()[:count].float() - 8

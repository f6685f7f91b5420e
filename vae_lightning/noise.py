"""Stateless randomness: every random choice is a function of (seed, epoch, index or step, rank).

No function here counts the numbers drawn before. So a resumed run, or a run on several devices, sees the same images
and the same noise as an uninterrupted run on one device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = 2**64 - 1


def derive_seed(*counters: int) -> int:
    """A 63-bit seed from integers.

    The finaliser of SplitMix64 (Steele et al. 2014) is applied to one counter after another.
    """
    state = 0x9E3779B97F4A7C15
    for counter in counters:
        state = (state ^ (counter & _MASK64)) * 0xBF58476D1CE4E5B9 & _MASK64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK64
        state ^= state >> 31
    return state >> 1


def reseed(device: torch.device, *counters: int) -> None:
    """Set the generators of the CPU and of `device` to `derive_seed(*counters)`.

    `torch.manual_seed` is not used, because on a machine without CUDA it records a stack trace at every call.

    Args:
        device: The device that the model runs on; without an index, the current one of its type.
        *counters: Integers that the noise depends on, such as (seed, epoch, step, rank).
    """
    seed = derive_seed(*counters)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def uniform16(index: Tensor, size: int, *counters: int) -> Tensor:
    """u[i, j] ~ Uniform{0, ..., 65535}, a pure function of (counters, index[i], j): int32 [B, size].

    Use it for noise per image that must not depend on the order of the images. Each 32-bit word is a bijective mix of
    its counter, keyed twice by `derive_seed`, and gives two 16-bit numbers: about twenty integer operations for two
    pixels, on the device of `index`. The mix is the multiply and xor-shift form of C. Wellons' `lowbias32`
    (https://nullprogram.com/blog/2018/07/31/).

    Args:
        index: The number of each image, [B].
        size: How many numbers each image gets.
        *counters: Further integers that the numbers depend on, such as (seed, epoch).
    """
    words = (size + 1) // 2
    key = derive_seed(*counters)
    lanes = torch.arange(words, device=index.device, dtype=torch.int32)
    counter = index.to(torch.int32)[:, None] * words + lanes  # [B, words], wraps around at 2^32
    bits = _mix32(_mix32(counter ^ _int32(key)) ^ _int32(key >> 31))
    halves = torch.stack((bits & 0xFFFF, _shift(bits, 16)), dim=-1)  # [B, words, 2]
    return halves.flatten(1)[:, :size]


def uniform32(index: Tensor, size: int, *counters: int) -> Tensor:
    """u[i, j] ~ Uniform{0, ..., 2^32 - 1}, a pure function of (counters, index[i], j): int64 [B, size].

    Use it with `below` for choices among many: 16 bits would prefer some of 50,000 values to others.

    Args:
        index: The number of each image, [B].
        size: How many numbers each image gets.
        *counters: Further integers that the numbers depend on.
    """
    high, low = uniform16(index, 2 * size, *counters).long().unflatten(1, (size, 2)).unbind(2)
    return high << 16 | low


def below(u: Tensor, limit: Tensor | int) -> Tensor:
    """Whole numbers uniform on 0 .. limit - 1: int64.

    Args:
        u: From `uniform32`.
        limit: At most 2^31; a tensor must broadcast against `u`.
    """
    return u * limit >> 32


def _mix32(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 16)) * _int32(0x7FEB352D)
    x = (x ^ _shift(x, 15)) * _int32(0x846CA68B)
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift. torch shifts int32 arithmetically, so the copies of the sign bit are masked out."""
    return (x >> bits) & (0xFFFFFFFF >> bits)


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value

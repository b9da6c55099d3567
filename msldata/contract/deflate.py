"""A zlib stream whose bytes depend on nothing but its content.

zlib, zlib-ng and their versions answer the same call with different (equally valid) bytes, so a shard written with
them changes its digest from machine to machine. This encoder is small and fixed: one block, the standard's fixed
Huffman codes, and only run-length matches (distance 1), which suit filtered 1-bit images. Any inflater reads it.

Sources: RFC 1950 (zlib), RFC 1951 (deflate), section 3.2.6 for the fixed codes.
"""

from __future__ import annotations

import zlib

import numpy as np

_MAX_MATCH = 258
_MIN_MATCH = 3
_HEADER, _HEADER_BITS = 0b011, 3  # low bit first: the last block; type 01, fixed codes
_END_OF_BLOCK_BITS = 7  # symbol 256: seven zero bits
_DISTANCE_BITS = 5  # distance 1 is code 0: five zero bits, no extra bits


def _reversed_bits(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)


def _fixed_code(symbol: int) -> tuple[int, int]:
    """(bits, width) of a literal/length symbol; Huffman codes enter the stream most significant bit first."""
    if symbol < 144:
        value, width = 0x30 + symbol, 8
    elif symbol < 256:
        value, width = 0x190 + symbol - 144, 9
    elif symbol < 280:
        value, width = symbol - 256, 7
    else:
        value, width = 0xC0 + symbol - 280, 8
    return _reversed_bits(value, width), width


def _token_tables() -> tuple[np.ndarray, np.ndarray]:
    """Bits and widths (int64) of every token: 0–255 are literals, 256 + n is a match of n bytes."""
    bits = np.zeros(256 + _MAX_MATCH + 1, dtype=np.int64)
    widths = np.zeros(256 + _MAX_MATCH + 1, dtype=np.int64)
    for literal in range(256):
        bits[literal], widths[literal] = _fixed_code(literal)
    symbol, first = 257, _MIN_MATCH
    for extra_bits in (0,) * 8 + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4 + (5,) * 4:
        code, width = _fixed_code(symbol)
        for extra in range(1 << extra_bits):
            bits[256 + first + extra] = code | extra << width
            widths[256 + first + extra] = width + extra_bits + _DISTANCE_BITS
        symbol, first = symbol + 1, first + (1 << extra_bits)
    code, width = _fixed_code(285)  # the longest match has a symbol of its own
    bits[256 + _MAX_MATCH], widths[256 + _MAX_MATCH] = code, width + _DISTANCE_BITS
    return bits, widths


_TOKEN_BITS, _TOKEN_WIDTHS = _token_tables()


def compress(data: np.ndarray) -> bytes:
    """The zlib stream of ``data``, a non-empty uint8 array of shape (N,)."""
    tokens = _tokens(data)
    bits, widths = _TOKEN_BITS[tokens], _TOKEN_WIDTHS[tokens]
    ends = np.cumsum(widths) + _HEADER_BITS
    starts = ends - widths
    num_bits = int(ends[-1]) + _END_OF_BLOCK_BITS
    # A token, 18 bits at most, is shifted to its place in the 32-bit word it begins in; tokens that begin in one word
    # share no bit, so their sum is their union, and it stays below 2**50, where float64 is exact.
    shifted = bits << (starts & 31)
    words = np.bincount(starts >> 5, weights=shifted, minlength=num_bits // 32 + 2).astype(np.int64)
    words[0] += _HEADER
    stream = words & 0xFFFFFFFF
    stream[1:] += words[:-1] >> 32
    body = stream.astype("<u4").tobytes()[: (num_bits + 7) // 8]
    return b"\x78\x01" + body + zlib.adler32(data.data).to_bytes(4, "big")


def _tokens(data: np.ndarray) -> np.ndarray:
    """Each run of equal bytes as a literal, as many longest matches as fit, and a short match or literals."""
    starts = np.concatenate([[0], np.flatnonzero(data[1:] != data[:-1]) + 1])
    repeats = np.diff(np.append(starts, data.size)) - 1
    longest, rest = np.divmod(repeats, _MAX_MATCH)
    matched = rest >= _MIN_MATCH
    counts = 1 + longest + np.where(matched, 1, rest)
    ends = np.cumsum(counts)
    # Most tokens are literals; matches are put over them where they belong.
    tokens = np.repeat(data[starts].astype(np.int64), counts)
    tokens[ends[matched] - 1] = 256 + rest[matched]
    for run in np.flatnonzero(longest):
        first = ends[run] - counts[run] + 1
        tokens[first : first + longest[run]] = 256 + _MAX_MATCH
    return tokens

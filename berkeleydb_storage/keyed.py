"""The checksums of Berkeley DB's encrypted files: HMAC, with a hash of its own, and the key for it. Pure.

The hash is SHA-1 but for its first 16 rounds. There a macro of the library lacks a parenthesis (``blk0`` in
``hmac/sha1.c``), so that a round adds the word as the machine has it, and nothing else. Only where the function of b, c
and d happens to be 0, once in 4,294,967,296 rounds, it does what SHA-1 does. It is good for finding damage.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

SIZE = 20
"""Bytes of a checksum, and of the key for it."""

AT_ONCE = 512
"""Pages whose checksums are best found together."""

_MAGIC = b"mac derivation key magic value"
_CIPHER_MAGIC = b"encryption and decryption key value magic"
_BLOCK = 64
_INITIAL = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0)
_CONSTANTS = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)
_WORD = 0xFFFFFFFF
_WORDS = struct.Struct("=16I")
_DIGEST = struct.Struct(">5I")

State = tuple[int, int, int, int, int]


def mac_key(password: bytes) -> bytes:
    """Return the key of the checksums that the library derives from a password."""
    return _hash(_INITIAL, password + b"\0" + _MAGIC + password + b"\0")


def cipher_key(password: bytes) -> bytes:
    """Return the key of AES that the library derives from a password."""
    return _hash(_INITIAL, password + b"\0" + _CIPHER_MAGIC + password + b"\0")[:16]


def mac(key: bytes, data: bytes) -> bytes:
    """Return the checksum of data of any length: 0.7 microseconds a byte. `key` is what `mac_key` returns."""
    inner, outer = _started(key)
    return _hash(outer, _hash(inner, data, _BLOCK), _BLOCK)


def _started(key: bytes) -> tuple[State, State]:
    """Return the states of the two hashes of HMAC after their first blocks."""
    padded = key.ljust(_BLOCK, b"\0")
    inner, outer = (_after(_INITIAL, bytes(byte ^ pad for byte in padded)) for pad in (0x36, 0x5C))
    return inner, outer


def _hash(state: State, data: bytes, before: int = 0) -> bytes:
    """Return the hash of data, whose first `before` bytes led to `state`."""
    whole = data + _end(len(data), before)
    for start in range(0, len(whole), _BLOCK):
        state = _after(state, whole[start : start + _BLOCK])
    return _DIGEST.pack(*state)


def _end(size: int, before: int) -> bytes:
    """Return what fills the last block."""
    return b"\x80".ljust(1 + (-size - 9) % _BLOCK, b"\0") + struct.pack(">Q", (before + size) * 8)


def _after(state: State, block: bytes) -> State:
    """Return the state of the hash after another block."""
    words = list(_WORDS.unpack(block))
    a, b, c, d, e = state
    for word in range(16):
        if (b & (c ^ d)) ^ d:
            e = e + words[word] & _WORD
        else:
            words[word] = int.from_bytes(words[word].to_bytes(4, sys.byteorder), "big")
            e = e + words[word] + _CONSTANTS[0] + _turned(a, 5) & _WORD
        a, b, c, d, e = e, a, _turned(b, 30), c, d
    for number in range(16, 80):
        word = _turned(
            words[number - 3 & 15] ^ words[number - 8 & 15] ^ words[number - 14 & 15] ^ words[number & 15], 1
        )
        words[number & 15] = word
        e = e + _mixed(number, b, c, d) + word + _CONSTANTS[number // 20] + _turned(a, 5) & _WORD
        a, b, c, d, e = e, a, _turned(b, 30), c, d
    first, second, third, fourth, fifth = state
    return first + a & _WORD, second + b & _WORD, third + c & _WORD, fourth + d & _WORD, fifth + e & _WORD


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _WORD


def _mixed(number: int, b: int, c: int, d: int) -> int:
    """Return SHA-1's function of three words, of one lane or many, in this round."""
    if number < 20:
        return (b & (c ^ d)) ^ d
    if 40 <= number < 60:
        return ((b | c) & d) | (b & c)
    return b ^ c ^ d


def macs(key: bytes, pages: Sequence[bytes]) -> list[bytes]:
    """Return the checksums of pages of the same length, a multiple of 64 bytes: all at once, 50 times as fast as `mac`.

    One in 4,000,000 of a page of 4 KiB is wrong: in the rounds that are SHA-1's after all. So ask `mac` before you
    tell anybody that a page is damaged. `AT_ONCE` pages take the least time each.

    Long integers hold a word of each page in 64-bit lanes.
    """
    if sys.byteorder == "big":
        return [mac(key, page) for page in pages]
    lanes = _Lanes(len(pages))
    inner, outer = (lanes.repeated(state) for state in _started(key))
    size = len(pages[0])
    for start in range(0, size, _BLOCK):
        inner = lanes.after(inner, lanes.words([page[start : start + _BLOCK] for page in pages]))
    inner = lanes.after(inner, lanes.repeated(_WORDS.unpack(_end(size, _BLOCK))))
    end = _WORDS.unpack(bytes(SIZE) + _end(SIZE, _BLOCK))[SIZE // 4 :]
    outer = lanes.after(outer, [lanes.swapped(word) for word in inner] + lanes.repeated(end))
    return lanes.digests(outer)


class _Lanes:
    """Arithmetic on words of 32 bits, one of each of many pages, each in the lower half of 64 bits."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ones = int.from_bytes((1).to_bytes(8, "little") * count, "little")
        self._low = self._ones * _WORD
        self._constants = [self._ones * constant for constant in _CONSTANTS]

    def repeated(self, words: Sequence[int]) -> list[int]:
        return [self._ones * word for word in words]

    def words(self, blocks: Sequence[bytes]) -> list[int]:
        """Return the 16 words of a block of each page."""
        pairs = memoryview(b"".join(blocks)).cast("Q")
        found = []
        for pair in range(8):
            both = int.from_bytes(pairs[pair::8].tobytes(), "little")
            found += [both & self._low, both >> 32 & self._low]
        return found

    def swapped(self, word: int) -> int:
        """Return words with the bytes of each in the other order."""
        low, byte = self._low, self._ones * 0xFF
        return word << 24 & low | (word >> 8 & byte) << 16 | (word >> 16 & byte) << 8 | word >> 24 & byte

    def after(self, state: Sequence[int], words: list[int]) -> list[int]:
        """Return the states after another block, as `_after` does."""
        low = self._low
        a, b, c, d, e = state
        for word in words:
            a, b, c, d, e = e + word & low, a, (b << 30 | b >> 2) & low, c, d
        for number in range(16, 80):
            word = words[number - 3 & 15] ^ words[number - 8 & 15] ^ words[number - 14 & 15] ^ words[number & 15]
            words[number & 15] = word = (word << 1 | word >> 31) & low
            turned = (a << 5 | a >> 27) & low
            e = e + _mixed(number, b, c, d) + word + self._constants[number // 20] + turned & low
            a, b, c, d, e = e, a, (b << 30 | b >> 2) & low, c, d
        return [before + now & low for before, now in zip(state, (a, b, c, d, e), strict=True)]

    def digests(self, state: Sequence[int]) -> list[bytes]:
        parts = [word.to_bytes(8 * self._count, "little") for word in state]
        numbers = zip(*(struct.unpack(f"<{self._count}Q", part) for part in parts), strict=True)
        return [_DIGEST.pack(*words) for words in numbers]

"""Decrypts pages of encrypted tables, by OpenSSL's libcrypto, which Python's own ``ssl`` needs too.

Berkeley DB: AES with 128 bits, CBC; the key is from a hash of its own, the start vector in the page's header
(``crypto/aes_method.c`` of its source).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

from berkeleydb_storage import keyed
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.salvage.pages import ENCRYPTED_START

LIBRARY = "libcrypto"
_VECTOR = slice(48, 64)


def decryption(key: str) -> Callable[[bytes], bytes]:
    """Return a function that decrypts a page, which must not be the first one of its table.

    Raises:
        BerkeleyDBStorageError: there is no libcrypto.
    """
    name = ctypes.util.find_library("crypto")
    if name is None:
        raise BerkeleyDBStorageError(
            f"{LIBRARY} is not there, which decrypts the pages of a storage that is salvaged: install OpenSSL"
        )
    library = ctypes.CDLL(name)
    secret = keyed.cipher_key(key.encode())
    library.EVP_CIPHER_CTX_new.restype = library.EVP_aes_128_cbc.restype = ctypes.c_void_p
    cipher = ctypes.c_void_p(library.EVP_aes_128_cbc())

    def decrypt(page: bytes) -> bytes:
        return page[:ENCRYPTED_START] + _decrypted(library, cipher, secret, page[_VECTOR], page[ENCRYPTED_START:])

    return decrypt


def _decrypted(library: Any, cipher: Any, secret: bytes, vector: bytes, data: bytes) -> bytes:
    context = ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
    try:
        result, length = ctypes.create_string_buffer(len(data) + 16), ctypes.c_int()
        library.EVP_DecryptInit_ex(context, cipher, None, secret, vector)
        library.EVP_CIPHER_CTX_set_padding(context, 0)
        if not library.EVP_DecryptUpdate(context, result, ctypes.byref(length), data, len(data)):
            raise BerkeleyDBStorageError(f"{LIBRARY} does not decrypt AES: look which version of OpenSSL is installed")
        return result.raw[: length.value]
    finally:
        library.EVP_CIPHER_CTX_free(context)

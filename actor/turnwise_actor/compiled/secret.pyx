# cython: language_level=3
"""What a turn does with its token's key, by libcrypto: the same as `tokens` and `policy.decision_seed` do.

All that can be prepared is, once for each key; and what is read and written lies where it belongs.
"""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

cdef extern from "openssl/evp.h":
    ctypedef struct EVP_CIPHER:
        pass
    enum:
        EVP_CTRL_GCM_GET_TAG
        EVP_CTRL_GCM_SET_TAG
    const EVP_CIPHER* EVP_aes_256_gcm() nogil
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new() nogil
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX*) nogil
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX*, int, int, void*) nogil
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, void*, const uint8_t*, const uint8_t*) nogil
    int EVP_DecryptUpdate(EVP_CIPHER_CTX*, uint8_t*, int*, const uint8_t*, int) nogil
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX*, uint8_t*, int*) nogil
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, void*, const uint8_t*, const uint8_t*) nogil
    int EVP_EncryptUpdate(EVP_CIPHER_CTX*, uint8_t*, int*, const uint8_t*, int) nogil
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX*, uint8_t*, int*) nogil

cdef extern from "openssl/sha.h":
    int SHA256_Init(SHA256_CTX*) nogil
    int SHA256_Update(SHA256_CTX*, const void*, size_t) nogil
    int SHA256_Final(uint8_t*, SHA256_CTX*) nogil

cdef extern from "<byteswap.h>":
    uint32_t bswap_32(uint32_t) nogil

cdef enum:
    HMAC_BLOCK = 64
    SHA256_SIZE = 32
    TAG = 16


cdef class Secret:
    """A `tokens.Key`, ready for use."""

    def __cinit__(self, key):
        cdef bytes secret = key.secret, head_id = key.head_id
        self.key = key
        if len(secret) != 32 or len(head_id) != 4:
            raise ValueError(f"key: got {len(secret)} and {len(head_id)} bytes; wanted 32 and 4")
        memcpy(self.head_id, <const uint8_t*> head_id, 4)
        _begin_hmac(&self._inner, secret, 0x36)
        _begin_hmac(&self._outer, secret, 0x5C)
        self._opener, self._sealer = EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_new()
        if not (
            self._opener != NULL
            and self._sealer != NULL
            and EVP_DecryptInit_ex(self._opener, EVP_aes_256_gcm(), NULL, secret, NULL)
            and EVP_EncryptInit_ex(self._sealer, EVP_aes_256_gcm(), NULL, secret, NULL)
        ):
            raise RuntimeError("libcrypto has no AES-256-GCM here")

    def __dealloc__(self):
        EVP_CIPHER_CTX_free(self._opener)
        EVP_CIPHER_CTX_free(self._sealer)

    cdef bint open(self, const uint8_t* nonce, Span head, Span name, Span sealed, uint8_t* plain) noexcept:
        """Whether what is sealed, TAG bytes more than what comes to `plain`, is genuine."""
        cdef int written, size = <int> sealed.size - TAG
        return (
            EVP_DecryptInit_ex(self._opener, NULL, NULL, NULL, nonce)
            and EVP_DecryptUpdate(self._opener, NULL, &written, head.at, <int> head.size)
            and EVP_DecryptUpdate(self._opener, NULL, &written, name.at, <int> name.size)
            and EVP_DecryptUpdate(self._opener, plain, &written, sealed.at, size)
            and EVP_CIPHER_CTX_ctrl(self._opener, EVP_CTRL_GCM_SET_TAG, TAG, <void*> (sealed.at + size))
            and EVP_DecryptFinal_ex(self._opener, plain + size, &written) > 0
        )

    cdef int seal(self, const uint8_t* nonce, Span head, Span name, uint8_t* content, int size) except -1:
        """Seals content in its place, with TAG bytes after it."""
        cdef int written
        if not (
            EVP_EncryptInit_ex(self._sealer, NULL, NULL, NULL, nonce)
            and EVP_EncryptUpdate(self._sealer, NULL, &written, head.at, <int> head.size)
            and EVP_EncryptUpdate(self._sealer, NULL, &written, name.at, <int> name.size)
            and EVP_EncryptUpdate(self._sealer, content, &written, content, size)
            and EVP_EncryptFinal_ex(self._sealer, content + size, &written)
            and EVP_CIPHER_CTX_ctrl(self._sealer, EVP_CTRL_GCM_GET_TAG, TAG, content + size)
        ):
            raise RuntimeError("libcrypto could not seal a token")
        return 0

    cdef void seed(self, const Span* parts, int count, uint8_t* seed) noexcept:
        """HMAC-SHA256 (RFC 2104) of the parts, the length of each before it."""
        cdef SHA256_CTX inner = self._inner, outer = self._outer
        cdef uint8_t digest[SHA256_SIZE]
        cdef uint32_t size
        cdef int i
        for i in range(count):
            size = bswap_32(<uint32_t> parts[i].size)
            SHA256_Update(&inner, &size, 4)
            SHA256_Update(&inner, parts[i].at, parts[i].size)
        SHA256_Final(digest, &inner)
        SHA256_Update(&outer, digest, SHA256_SIZE)
        SHA256_Final(seed, &outer)


cdef void _begin_hmac(SHA256_CTX* state, bytes secret, int pad) noexcept:
    cdef uint8_t block[HMAC_BLOCK]
    cdef int i
    for i in range(HMAC_BLOCK):
        block[i] = <uint8_t> pad
    for i in range(len(secret)):
        block[i] ^= <uint8_t> secret[i]
    SHA256_Init(state)
    SHA256_Update(state, block, HMAC_BLOCK)

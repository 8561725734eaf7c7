from libc.stdint cimport uint8_t

from turnwise_actor.compiled.wire cimport Span

cdef extern from "openssl/evp.h":
    ctypedef struct EVP_CIPHER_CTX:
        pass

cdef extern from "openssl/sha.h":
    ctypedef struct SHA256_CTX:
        pass


cdef class Secret:
    cdef readonly object key
    cdef uint8_t[4] head_id
    cdef SHA256_CTX _inner, _outer
    cdef EVP_CIPHER_CTX* _opener
    cdef EVP_CIPHER_CTX* _sealer
    cdef bint open(self, const uint8_t* nonce, Span head, Span name, Span sealed, uint8_t* plain) noexcept
    cdef int seal(self, const uint8_t* nonce, Span head, Span name, uint8_t* content, int size) except -1
    cdef void seed(self, const Span* parts, int count, uint8_t* seed) noexcept

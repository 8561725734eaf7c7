/* BLAKE2b (RFC 7693) without a key, of contents that come in parts. Of what hashlib takes for a turn's, a
   third is the making of its objects, and libcrypto has it for digests of 64 bytes only. For little-endian
   CPUs. */

#include <stdint.h>
#include <string.h>

#define BLAKE2B_BLOCK 128

typedef struct {
    uint64_t state[8], added;
    uint8_t block[BLAKE2B_BLOCK];
    size_t filled, size;
} blake2b;

static const uint64_t blake2b_begins[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const uint8_t blake2b_orders[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t blake2b_turned(uint64_t word, int by)
{
    return word >> by | word << (64 - by);
}

static inline void blake2b_mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y)
{
    v[a] += v[b] + x;
    v[d] = blake2b_turned(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = blake2b_turned(v[b] ^ v[c], 24);
    v[a] += v[b] + y;
    v[d] = blake2b_turned(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = blake2b_turned(v[b] ^ v[c], 63);
}

static void blake2b_compress(blake2b *hash, int last)
{
    uint64_t v[16], m[16];
    memcpy(v, hash->state, sizeof hash->state);
    memcpy(v + 8, blake2b_begins, sizeof blake2b_begins);
    memcpy(m, hash->block, sizeof m);
    v[12] ^= hash->added;
    v[14] ^= last ? UINT64_MAX : 0;
#pragma GCC unroll 12
    for (int round = 0; round < 12; round++) {
        const uint8_t *order = blake2b_orders[round % 10];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            blake2b_mix(v, i, 4 + i, 8 + i, 12 + i, m[order[2 * i]], m[order[2 * i + 1]]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            blake2b_mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[order[8 + 2 * i]],
                        m[order[9 + 2 * i]]);
    }
    for (int i = 0; i < 8; i++)
        hash->state[i] ^= v[i] ^ v[8 + i];
}

/* size: of the digest. */
static void blake2b_begin(blake2b *hash, size_t size)
{
    memcpy(hash->state, blake2b_begins, sizeof blake2b_begins);
    hash->state[0] ^= 0x01010000 ^ size;
    hash->added = hash->filled = 0;
    hash->size = size;
}

static void blake2b_add(blake2b *hash, const void *content, size_t size)
{
    const uint8_t *from = content;
    while (size) {
        if (hash->filled == BLAKE2B_BLOCK) { /* with more to come, it is not the last, which differs */
            hash->added += BLAKE2B_BLOCK;
            blake2b_compress(hash, 0);
            hash->filled = 0;
        }
        const size_t room = BLAKE2B_BLOCK - hash->filled, taken = size < room ? size : room;
        memcpy(hash->block + hash->filled, from, taken);
        hash->filled += taken;
        from += taken;
        size -= taken;
    }
}

static void blake2b_end(blake2b *hash, uint8_t *digest)
{
    memset(hash->block + hash->filled, 0, BLAKE2B_BLOCK - hash->filled);
    hash->added += hash->filled;
    blake2b_compress(hash, 1);
    memcpy(digest, hash->state, hash->size);
}

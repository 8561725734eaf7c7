/* What the forward pass is made of: a layer's products for the kind of CPU that this is, norm, activation.

   Weights lie [blocks of out, in, BLOCK], padded to whole BLOCKs, each at the start of a cache line: sums go
   over the inputs in their order, whatever the rest of the batch, so that an answer never depends on who else
   asked. */

#include <math.h>
#include <stddef.h>

#define BLOCK 64
#define MOST_ROWS 8
#define UNROLL _Pragma("GCC unroll 16")
#define EXACT __attribute__((optimize("fp-contract=off"))) /* the same numbers on every kind of CPU */

enum { RELU, TANH, SILU };

#define KERNEL(name) name##_plain
#define TARGET
#define LANES 4
#define SUMS 8
#include "kernel.h"

#if defined(__x86_64__)

#undef KERNEL
#undef TARGET
#undef LANES
#undef SUMS
#define KERNEL(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define SUMS 8
#include "kernel.h"

#undef KERNEL
#undef TARGET
#undef LANES
#undef SUMS
#define KERNEL(name) name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define SUMS 16
#include "kernel.h"

#endif

static int most_rows = 4;
static void (*products)(int, const float *const *, size_t, const float *, const float *, float *, size_t,
                        size_t, size_t *, int *) = products_plain;
static void (*norm)(float *, size_t, const float *, const float *, float) = norm_plain;
static void (*activate)(float *, size_t, int) = activate_plain;

static void choose_kernel(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        most_rows = 8;
        products = products_avx512;
        norm = norm_avx512;
        activate = activate_avx512;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        products = products_avx2;
        norm = norm_avx2;
        activate = activate_avx2;
    }
#endif
}

#define LINE 16 /* floats of a cache line */

/* w [n_out, n_in] turned round, tile by tile; less its means over n_out, if so. */
static void turn(const float *w, size_t n_out, size_t n_in, int centred, float *turned)
{
    for (size_t from = 0; from < n_in; from += LINE) {
        const size_t count = n_in - from < LINE ? n_in - from : LINE;
        double sums[LINE] = {0};
        float means[LINE] = {0};
        for (size_t o = 0; centred && o < n_out; o++)
            for (size_t i = 0; i < count; i++)
                sums[i] += w[o * n_in + from + i];
        for (size_t i = 0; i < count; i++)
            means[i] = (float)(sums[i] / (double)n_out);
        for (size_t at = 0; at < n_out; at += LINE) {
            const size_t end = n_out - at < LINE ? n_out : at + LINE;
            for (size_t i = 0; i < count; i++)
                for (size_t o = at; o < end; o++)
                    turned[(o / BLOCK * n_in + from + i) * BLOCK + o % BLOCK] = w[o * n_in + from + i] - means[i];
        }
    }
}

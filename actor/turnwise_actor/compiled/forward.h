/* What the forward pass is made of: a layer's products for the kind of CPU that this is, norm, activation.

   Weights lie [in, out], rows padded to whole BLOCKs: sums go over the inputs in their order, whatever the
   rest of the batch, so that an answer never depends on who else asked. */

#include <math.h>
#include <stddef.h>

#define BLOCK 64
#define ROWS 4

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
#define SUMS 4
#include "kernel.h"

#endif

static void (*row)(const float *, size_t, const float *, const float *, float *, size_t,
                   size_t *) = row_plain;
static void (*rows)(const float *, size_t, size_t, const float *, const float *, float *, size_t,
                    size_t) = rows_plain;

static void choose_kernel(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        row = row_avx512;
        rows = rows_avx512;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        row = row_avx2;
        rows = rows_avx2;
    }
#endif
}

#define TILE 16 /* floats of a cache line */

/* w [n_out, n_in] turned round to [n_in, width], tile by tile; less its means over n_out, if so. */
static void turn(const float *w, size_t n_out, size_t n_in, int centred, float *turned, size_t width)
{
    for (size_t from = 0; from < n_in; from += TILE) {
        const size_t count = n_in - from < TILE ? n_in - from : TILE;
        double sums[TILE] = {0};
        float means[TILE] = {0};
        for (size_t o = 0; centred && o < n_out; o++)
            for (size_t i = 0; i < count; i++)
                sums[i] += w[o * n_in + from + i];
        for (size_t i = 0; i < count; i++)
            means[i] = (float)(sums[i] / (double)n_out);
        for (size_t at = 0; at < n_out; at += TILE) {
            const size_t end = n_out - at < TILE ? n_out : at + TILE;
            for (size_t i = 0; i < count; i++)
                for (size_t o = at; o < end; o++)
                    turned[(from + i) * width + o] = w[o * n_in + from + i] - means[i];
        }
    }
}

/* Layer norm of what has no mean any more. */
static void norm(float *y, size_t n, const float *scale, const float *shift, float eps)
{
    float lanes[16] = {0}, squares = 0.0f;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t lane = 0; lane < 16; lane++)
            lanes[lane] += y[i + lane] * y[i + lane];
    for (; i < n; i++)
        squares += y[i] * y[i];
    for (size_t lane = 0; lane < 16; lane++)
        squares += lanes[lane];
    const float by = 1.0f / sqrtf(squares / (float)n + eps);
    for (i = 0; i < n; i++)
        y[i] = y[i] * by * scale[i] + shift[i];
}

enum { RELU, TANH, SILU };

static void activate(float *y, size_t n, int kind)
{
    if (kind == RELU)
        for (size_t i = 0; i < n; i++)
            y[i] = y[i] > 0.0f ? y[i] : 0.0f;
    else if (kind == TANH)
        for (size_t i = 0; i < n; i++)
            y[i] = tanhf(y[i]);
    else
        for (size_t i = 0; i < n; i++)
            y[i] = y[i] * 0.5f * (1.0f + tanhf(0.5f * y[i]));
}

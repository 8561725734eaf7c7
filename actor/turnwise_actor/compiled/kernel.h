/* A layer's products, y = W x + b, its norm and its activation, for one kind of CPU: forward.h includes this
   once for each.

   KERNEL(name): this kind's name of it. TARGET: has the compiler use its instructions. LANES: floats in one
   of its vectors. SUMS: vectors of sums that stay in its registers while inputs go by. */

typedef float KERNEL(vector) __attribute__((vector_size(4 * LANES), aligned(4)));

/* So many rows, known where this is put in, that share the reading of the weights; of their inputs those at
   `places`. */
TARGET static inline __attribute__((always_inline)) void KERNEL(block)(
    const int rows, const float *const *x, size_t n_in, const size_t *places, size_t count, const float *w,
    const float *b, float *y, size_t y_apart, size_t width)
{
    const int vectors = SUMS / rows < BLOCK / LANES ? SUMS / rows : BLOCK / LANES;
    for (size_t at = 0; at < width; at += vectors * LANES) {
        const float *panel = w + at / BLOCK * n_in * BLOCK + at % BLOCK;
        KERNEL(vector) sums[rows][vectors];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int j = 0; j < vectors; j++)
                sums[r][j] = ((const KERNEL(vector) *)(b + at))[j];
        for (size_t i = 0; i < count; i++) {
            const KERNEL(vector) *weights = (const KERNEL(vector) *)(panel + places[i] * BLOCK);
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int j = 0; j < vectors; j++)
                    sums[r][j] += x[r][places[i]] * weights[j];
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int j = 0; j < vectors; j++)
                ((KERNEL(vector) *)(y + r * y_apart + at))[j] = sums[r][j] + 0.0f; /* -0 becomes 0 */
    }
}

/* rows: 1, 2, 4 or 8, and no more than SUMS / 2: with one vector of sums of each, an input that is read would
   be of use once. y: rows so many floats apart. width: of b and y, in whole BLOCKs. places, counts: room for
   n_in.

   Inputs that are 0 in every row (most of a hashed text, half of what relu leaves of one row) are passed over.
   Adding 0 changes no sum, so each row comes out as it would alone, to the bit. */
TARGET static void KERNEL(products)(int rows, const float *const *x, size_t n_in, const float *w,
                                    const float *b, float *y, size_t y_apart, size_t width, size_t *places,
                                    int *counts)
{
    size_t count = 0;
    for (size_t i = 0; i < n_in; i++)
        counts[i] = x[0][i] != 0.0f;
    for (int r = 1; r < rows; r++)
        for (size_t i = 0; i < n_in; i++)
            counts[i] |= x[r][i] != 0.0f;
    for (size_t i = 0; i < n_in; i++) {
        places[count] = i;
        count += counts[i];
    }
    if (rows == 1)
        KERNEL(block)(1, x, n_in, places, count, w, b, y, y_apart, width);
    else if (rows == 2)
        KERNEL(block)(2, x, n_in, places, count, w, b, y, y_apart, width);
    else if (rows == 4)
        KERNEL(block)(4, x, n_in, places, count, w, b, y, y_apart, width);
    else if (SUMS / 2 >= 8)
        KERNEL(block)(8, x, n_in, places, count, w, b, y, y_apart, width);
}

/* Layer norm of what has no mean any more. */
TARGET EXACT static void KERNEL(norm)(float *y, size_t n, const float *scale, const float *shift, float eps)
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

TARGET EXACT static void KERNEL(activate)(float *y, size_t n, int kind)
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

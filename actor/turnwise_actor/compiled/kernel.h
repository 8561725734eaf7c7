/* The products of a layer, y = W x + b, for one kind of CPU: forward.h includes this once for each.

   KERNEL(name): this kind's name of it. TARGET: has the compiler use its instructions. LANES: floats in one
   of its vectors. SUMS: vectors of sums that stay in its registers while a row's inputs go by. */

typedef float KERNEL(vector) __attribute__((vector_size(4 * LANES), aligned(4)));

/* One row. Inputs that are 0 (most of a hashed text, half of what relu leaves) are passed over.
   width: of w's rows, b and y, in whole BLOCKs. places: room for n_in. */
TARGET static void KERNEL(row)(const float *x, size_t n_in, const float *w, const float *b, float *y,
                               size_t width, size_t *places)
{
    size_t count = 0;
    for (size_t i = 0; i < n_in; i++) {
        places[count] = i;
        count += x[i] != 0.0f;
    }
    for (size_t at = 0; at < width; at += SUMS * LANES) {
        KERNEL(vector) sums[SUMS];
        for (int j = 0; j < SUMS; j++)
            sums[j] = ((const KERNEL(vector) *)(b + at))[j];
        for (size_t i = 0; i < count; i++) {
            const KERNEL(vector) *weights = (const KERNEL(vector) *)(w + places[i] * width + at);
            const float value = x[places[i]];
            for (int j = 0; j < SUMS; j++)
                sums[j] += value * weights[j];
        }
        for (int j = 0; j < SUMS; j++)
            ((KERNEL(vector) *)(y + at))[j] = sums[j];
    }
}

/* ROWS rows, x and y so many floats apart, that share the reading of the weights. Adding 0 changes no sum, so
   each row comes out as it would alone, to the bit. */
TARGET static void KERNEL(rows)(const float *x, size_t x_apart, size_t n_in, const float *w, const float *b,
                                float *y, size_t y_apart, size_t width)
{
    for (size_t at = 0; at < width; at += 2 * LANES) {
        KERNEL(vector) sums[ROWS][2];
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 2; j++)
                sums[r][j] = ((const KERNEL(vector) *)(b + at))[j];
        for (size_t i = 0; i < n_in; i++) {
            const KERNEL(vector) *weights = (const KERNEL(vector) *)(w + i * width + at);
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < 2; j++)
                    sums[r][j] += x[r * x_apart + i] * weights[j];
        }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 2; j++)
                ((KERNEL(vector) *)(y + r * y_apart + at))[j] = sums[r][j];
    }
}

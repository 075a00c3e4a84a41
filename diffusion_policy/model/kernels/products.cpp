// Products of few rows with a matrix that is read once.

#include "vectors.h"

namespace {

constexpr int64_t STRIP = 2 * LANES;  // columns of a product that one thread works on at a time
constexpr int ROWS = 6;               // rows whose sums of a strip fit the registers of AVX2

// ROW rows of x (depth numbers each) with a strip of weights (depth, STRIP).
template <int ROW>
inline void strip_product(const float *x, const float *strip, const float *bias, float *out, int64_t depth,
                          int64_t columns, bool add) {
    Vector sum[ROW][2];
#pragma GCC unroll 8
    for (int row = 0; row < ROW; row++)
        for (int half = 0; half < 2; half++) sum[row][half] = bias ? load(bias + half * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        const Vector low = load(strip + k * STRIP), high = load(strip + k * STRIP + LANES);
#pragma GCC unroll 8
        for (int row = 0; row < ROW; row++) {
            sum[row][0] += low * x[row * depth + k];
            sum[row][1] += high * x[row * depth + k];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROW; row++)
        for (int half = 0; half < 2; half++) {
            float *to = out + row * columns + half * LANES;
            store(to, add ? sum[row][half] + load(to) : sum[row][half]);
        }
}

template <int ROW = ROWS>
inline void rest_of_strip(int64_t rows, const float *x, const float *strip, const float *bias, float *out,
                          int64_t depth, int64_t columns, bool add) {
    if (rows == ROW) strip_product<ROW>(x, strip, bias, out, depth, columns, add);
    if constexpr (ROW > 1)
        if (rows < ROW) rest_of_strip<ROW - 1>(rows, x, strip, bias, out, depth, columns, add);
}

}  // namespace

extern "C" {

void product(const float *x, const float *strips, const float *bias, float *out, int64_t number, int64_t rows,
             int64_t depth, int64_t columns, int add) {
    const int64_t parts = (rows + ROWS - 1) / ROWS, n_strips = columns / STRIP;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t which = 0; which < number; which++)
        for (int64_t strip = 0; strip < n_strips; strip++)
            for (int64_t part = 0; part < parts; part++) {  // of equal size, to one row
                const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
                rest_of_strip(last - first, x + (which * rows + first) * depth,
                              strips + (which * n_strips + strip) * depth * STRIP,
                              bias ? bias + strip * STRIP : nullptr,
                              out + (which * rows + first) * columns + strip * STRIP, depth, columns, add != 0);
            }
}
}

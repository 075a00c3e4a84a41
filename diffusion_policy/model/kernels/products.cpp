// Products of few rows with a matrix that is read once.

#include "vectors.h"

namespace {

constexpr int64_t STRIP = 2 * LANES;  // columns of a product that one thread works on at a time
constexpr int ROWS = 6;               // rows whose sums of a strip fit the registers of AVX2

enum Then { WRITE, ADD, GELU };  // what is done with a product; the numbers are those of __init__.py

// exp of what is not above zero, to the last digit but one: a power of two times a polynomial (Cephes).
inline Vector exponential(Vector x) {
    typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
    x = x < -87.0f ? Vector{} - 87.0f : x;
    const Whole power = __builtin_convertvector(x * 1.44269504f - 0.5f, Whole);  // rounds towards zero
    const Vector n = __builtin_convertvector(power, Vector), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const Vector terms =
        ((((r * 1.9875691e-4f + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665796e-2f) * r + 1.6666665e-1f) * r + 0.5f;
    const Whole bits = (power + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return (terms * r * r + r + 1.0f) * scale;
}

// x times the share of a normal distribution below x; erf by Abramowitz and Stegun 7.1.26, to 1.5e-7.
inline Vector gelu(Vector x) {
    const Vector z = x * 0.70710678f, size = z < 0.0f ? -z : z, t = 1.0f / (1.0f + 0.3275911f * size);
    const Vector poly =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const Vector erf = 1.0f - poly * exponential(-size * size);
    return 0.5f * x * (1.0f + (z < 0.0f ? -erf : erf));
}

// ROW rows of x (depth numbers each) with a strip of weights (depth, STRIP).
template <int ROW>
inline void strip_product(const float *x, const float *strip, const float *bias, float *out, int64_t depth,
                          int64_t columns, Then then) {
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
            const Vector value = sum[row][half];
            store(to, then == ADD ? value + load(to) : then == GELU ? gelu(value) : value);
        }
}

template <int ROW = ROWS>
inline void rest_of_strip(int64_t rows, const float *x, const float *strip, const float *bias, float *out,
                          int64_t depth, int64_t columns, Then then) {
    if (rows == ROW) strip_product<ROW>(x, strip, bias, out, depth, columns, then);
    if constexpr (ROW > 1)
        if (rows < ROW) rest_of_strip<ROW - 1>(rows, x, strip, bias, out, depth, columns, then);
}

}  // namespace

extern "C" {

void product(const float *x, const float *strips, const float *bias, float *out, int64_t number, int64_t rows,
             int64_t depth, int64_t columns, int then) {
    const int64_t parts = (rows + ROWS - 1) / ROWS, n_strips = columns / STRIP;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t which = 0; which < number; which++)
        for (int64_t strip = 0; strip < n_strips; strip++)
            for (int64_t part = 0; part < parts; part++) {  // of equal size, to one row
                const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
                rest_of_strip(last - first, x + (which * rows + first) * depth,
                              strips + (which * n_strips + strip) * depth * STRIP,
                              bias ? bias + strip * STRIP : nullptr,
                              out + (which * rows + first) * columns + strip * STRIP, depth, columns, Then(then));
            }
}
}

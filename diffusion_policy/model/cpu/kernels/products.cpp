// Products of few rows with a matrix that is read once, in float32 or with what is multiplied rounded to bf16.

#include "vectors.h"

#if defined(__x86_64__) && (__GNUC__ >= 10 || defined(__clang__))
#include <immintrin.h>
#define WITH_BF16
#endif

namespace {

constexpr int64_t STRIP = 2 * LANES;  // columns of a product that one thread works on at a time

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

inline void finish(Vector sum, float *to, Then then) {
    store(to, then == ADD ? sum + load(to) : then == GELU ? gelu(sum) : sum);
}

// Rows of x with a strip of weights (depth, STRIP).
struct InFloat32 {
    typedef float Number;
    static constexpr int ROWS = 6;  // whose sums fit the registers of AVX2

    template <int ROW>
    static void multiply(const float *x, const float *strip, const float *bias, float *out, int64_t depth,
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
            for (int half = 0; half < 2; half++) finish(sum[row][half], out + row * columns + half * LANES, then);
    }
};

#ifdef WITH_BF16
// The same with bf16 numbers, summed in float32; two rows of weights alternate in a strip (depth / 2, STRIP, 2).
struct InBf16 {
    typedef uint16_t Number;
    static constexpr int ROWS = 16;  // whose sums fit the registers of AVX512

    template <int ROW>
    __attribute__((target("avx512f,avx512bf16"))) static void multiply(const uint16_t *x, const uint16_t *strip,
                                                                       const float *bias, float *out, int64_t depth,
                                                                       int64_t columns, Then then) {
        __m512 sum[ROW];
#pragma GCC unroll 16
        for (int row = 0; row < ROW; row++) sum[row] = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
        for (int64_t k = 0; k < depth; k += 2) {
            const __m512bh weights = __m512bh(_mm512_loadu_si512(strip + k * STRIP));
#pragma GCC unroll 16
            for (int row = 0; row < ROW; row++) {
                int32_t two;
                std::memcpy(&two, x + row * depth + k, sizeof two);
                sum[row] = _mm512_dpbf16_ps(sum[row], weights, __m512bh(_mm512_set1_epi32(two)));
            }
        }
        for (int row = 0; row < ROW; row++) {
            float sums[STRIP];
            _mm512_storeu_ps(sums, sum[row]);
            for (int half = 0; half < 2; half++)
                finish(load(sums + half * LANES), out + row * columns + half * LANES, then);
        }
    }
};
#endif

template <typename Numbers, int ROW = Numbers::ROWS>
void multiply_rows(int64_t rows, const typename Numbers::Number *x, const typename Numbers::Number *strip,
                   const float *bias, float *out, int64_t depth, int64_t columns, Then then) {
    if (rows == ROW) Numbers::template multiply<ROW>(x, strip, bias, out, depth, columns, then);
    if constexpr (ROW > 1)
        if (rows < ROW) multiply_rows<Numbers, ROW - 1>(rows, x, strip, bias, out, depth, columns, then);
}

template <typename Numbers>
void multiply_all(const typename Numbers::Number *x, const typename Numbers::Number *strips, const float *bias,
                  float *out, int64_t number, int64_t rows, int64_t depth, int64_t columns, Then then) {
    const int64_t parts = (rows + Numbers::ROWS - 1) / Numbers::ROWS, n_strips = columns / STRIP;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t which = 0; which < number; which++)
        for (int64_t strip = 0; strip < n_strips; strip++)
            for (int64_t part = 0; part < parts; part++) {  // of equal size, to one row
                const int64_t first = rows * part / parts, last = rows * (part + 1) / parts;
                multiply_rows<Numbers>(last - first, x + (which * rows + first) * depth,
                                       strips + (which * n_strips + strip) * depth * STRIP,
                                       bias ? bias + strip * STRIP : nullptr,
                                       out + (which * rows + first) * columns + strip * STRIP, depth, columns, then);
            }
}

}  // namespace

extern "C" {

void product(const float *x, const float *strips, const float *bias, float *out, int64_t number, int64_t rows,
             int64_t depth, int64_t columns, int then) {
    multiply_all<InFloat32>(x, strips, bias, out, number, rows, depth, columns, Then(then));
}

#ifdef WITH_BF16
// `rounded` has room for x.
__attribute__((target("avx512f,avx512bf16"))) void bf16_product(const float *x, const uint16_t *strips,
                                                                const float *bias, float *out, int64_t number,
                                                                int64_t rows, int64_t depth, int64_t columns, int then,
                                                                uint16_t *rounded) {
    for (int64_t i = 0; i < number * rows * depth; i += 16) {
        const __m256bh numbers = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
        std::memcpy(rounded + i, &numbers, sizeof numbers);
    }
    multiply_all<InBf16>(rounded, strips, bias, out, number, rows, depth, columns, Then(then));
}
#endif
}

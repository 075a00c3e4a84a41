// What a CPU computes between and instead of torch's own operations, in one pass over memory each.
//
// All arrays are float32 and contiguous, images with channels innermost. Sums do not depend on the number of threads.
// What is not a number stays not a number. __init__.py says what each function takes; it alone calls them.

#pragma once

#ifdef __x86_64__
#pragma GCC target("avx2,fma")
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 8;

typedef float Vector __attribute__((vector_size(4 * LANES)));

inline Vector load(const float *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float *to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline float sum_of(Vector v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

}  // namespace

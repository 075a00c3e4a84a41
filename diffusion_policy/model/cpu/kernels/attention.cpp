// Attention of few tokens: what a denoising step computes between its large products.

#include "vectors.h"

namespace {

void softmax(float *scores, int64_t number) {
    float largest = scores[0], sum = 0;
    for (int64_t i = 1; i < number; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < number; i++) sum += scores[i] = std::exp(scores[i] - largest);
    for (int64_t i = 0; i < number; i++) scores[i] /= sum;
}

// Products of x with ROWS rows that lie `stride` numbers apart.
template <int ROWS> inline void products_of(const float *x, const float *rows, int64_t stride, int64_t size, float *to) {
    Vector sums[ROWS] = {};
    for (int64_t i = 0; i < size; i += LANES)
        for (int row = 0; row < ROWS; row++) sums[row] += load(x + i) * load(rows + row * stride + i);
    for (int row = 0; row < ROWS; row++) to[row] = sum_of(sums[row]);
}

inline void products_of(const float *x, const float *rows, int64_t number, int64_t stride, int64_t size, float *to) {
    int64_t row = 0;
    for (; row + 4 <= number; row += 4) products_of<4>(x, rows + row * stride, stride, size, to + row);
    for (; row < number; row++) products_of<1>(x, rows + row * stride, stride, size, to + row);
}

// to += factor * from
inline void add_scaled(float factor, const float *from, float *to, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) store(to + i, load(to + i) + load(from + i) * factor);
}

}  // namespace

extern "C" {

void self_attention(const float *qkv, const float *mask, float *out, int64_t rows, int64_t heads, int64_t size,
                    double scale) {
    const int64_t width = heads * size;
    std::vector<float> shares(rows);
    std::memset(out, 0, sizeof(float) * rows * width);
    for (int64_t head = 0; head < heads; head++)
        for (int64_t row = 0; row < rows; row++) {
            products_of(qkv + row * 3 * width + head * size, qkv + width + head * size, rows, 3 * width, size,
                        shares.data());
            for (int64_t other = 0; other < rows; other++)
                shares[other] = shares[other] * float(scale) + mask[row * rows + other];
            softmax(shares.data(), rows);
            for (int64_t other = 0; other < rows; other++)
                add_scaled(shares[other], qkv + (other * 3 + 2) * width + head * size, out + row * width + head * size,
                           size);
        }
}

void cross_attention(const float *x, const float *keys, const float *key_bias, const float *mask, const float *values,
                     const float *bias, float *out, int64_t rows, int64_t width, int64_t heads, int64_t tokens) {
    const int64_t columns = heads * tokens;
    std::vector<float> shares(columns);
    for (int64_t row = 0; row < rows; row++) {
        products_of(x + row * width, keys, columns, width, width, shares.data());
        for (int64_t c = 0; c < columns; c++) shares[c] += key_bias[c] + mask[row * columns + c];
        for (int64_t head = 0; head < heads; head++) softmax(shares.data() + head * tokens, tokens);
        add_scaled(1, bias, out + row * width, width);
        for (int64_t c = 0; c < columns; c++) add_scaled(shares[c], values + c * width, out + row * width, width);
    }
}
}

// GroupNorm with shortcut, ReLU and max pooling, and rows of a layer norm.

#include "vectors.h"

namespace {

constexpr int GROUP = 16;    // channels of a group of GroupNorm: two vectors, one cache line
constexpr int64_t RUN = 64;  // pixels summed in float32 before the sum goes on in double

typedef int32_t Whole __attribute__((vector_size(4 * LANES)));

inline Vector rectified(Vector v) { return v < 0.0f ? Vector{} : v; }

struct Shape {
    int64_t images, pixels, channels;

    int64_t groups() const { return channels / GROUP; }
};

// Calls `work(image, group)` for all of them, on all threads.
template <typename Work> void each_group(const Shape &shape, Work work) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t image = 0; image < shape.images; image++)
        for (int64_t group = 0; group < shape.groups(); group++) work(image, group);
}

// Sums of a(pixel, half) and of b(pixel, half) over pixels, by channel of a group.
template <typename First, typename Second>
inline void sums(int64_t pixels, First first, Second second, double (&of_first)[GROUP], double (&of_second)[GROUP]) {
    for (int64_t start = 0; start < pixels; start += RUN) {
        const int64_t end = start + RUN < pixels ? start + RUN : pixels;
        Vector a[2] = {}, b[2] = {};
        for (int64_t pixel = start; pixel < end; pixel++)
            for (int half = 0; half < 2; half++) {
                const Vector value = first(pixel, half);
                a[half] += value;
                b[half] += second(pixel, half, value);
            }
        for (int i = 0; i < GROUP; i++) {
            of_first[i] += a[i / LANES][i % LANES];
            of_second[i] += b[i / LANES][i % LANES];
        }
    }
}

// Normalises a group, scales and shifts it.
struct Affine {
    Vector mean, scale[2], bias[2];

    Vector operator()(Vector x, int half) const { return (x - mean) * scale[half] + bias[half]; }
};

// Sums are of differences from each channel's first pixel, so that a mean far from zero costs no digits.
Affine measure(const float *x, const Shape &shape, const float *weight, const float *bias, double eps, float *mean,
               float *rstd) {
    const Vector origin[2] = {load(x), load(x + LANES)};
    double sum[GROUP] = {}, squares[GROUP] = {}, total = 0, spread = 0;
    sums(
        shape.pixels,
        [&](int64_t pixel, int half) { return load(x + pixel * shape.channels + half * LANES) - origin[half]; },
        [&](int64_t, int, Vector value) { return value * value; }, sum, squares);
    const double pixels = double(shape.pixels), count = pixels * GROUP;
    for (int i = 0; i < GROUP; i++) total += sum[i] + pixels * x[i];
    const double centre = total / count;
    for (int i = 0; i < GROUP; i++) {
        const double away = x[i] - centre;
        spread += squares[i] + 2 * away * sum[i] + pixels * away * away;
    }
    *mean = float(centre);
    *rstd = float(1 / std::sqrt((spread < 0 ? 0 : spread) / count + eps));
    Affine affine;
    affine.mean = Vector{} + *mean;
    for (int half = 0; half < 2; half++) {
        affine.scale[half] = load(weight + half * LANES) * *rstd;
        affine.bias[half] = load(bias + half * LANES);
    }
    return affine;
}

// Gradients of a group's norm; `incoming(pixel, half)` is that of its output.
template <typename Incoming>
inline void norm_gradients(Incoming incoming, const float *x, float *of_x, const Shape &shape, const float *weight,
                           float mean, float rstd, float *of_weight, float *of_bias) {
    double plain[GROUP] = {}, centred[GROUP] = {}, level = 0, slope = 0;
    sums(
        shape.pixels, incoming,
        [&](int64_t pixel, int half, Vector value) {
            return value * (load(x + pixel * shape.channels + half * LANES) - mean);
        },
        plain, centred);
    for (int i = 0; i < GROUP; i++) {
        level += weight[i] * plain[i];
        slope += weight[i] * centred[i];
        of_weight[i] = float(rstd * centred[i]);
        of_bias[i] = float(plain[i]);
    }
    const double count = double(shape.pixels) * GROUP;
    slope *= -double(rstd) * rstd * rstd / count;
    level *= -double(rstd) / count;
    const Vector scale[2] = {load(weight) * rstd, load(weight + LANES) * rstd};
    for (int64_t pixel = 0; pixel < shape.pixels; pixel++)
        for (int half = 0; half < 2; half++) {
            const int64_t at = pixel * shape.channels + half * LANES;
            store(of_x + at,
                  incoming(pixel, half) * scale[half] + (load(x + at) - mean) * float(slope) + float(level));
        }
}

}  // namespace

extern "C" {

// Each row to mean 0 and variance 1.
void normalize_rows(const float *x, float *y, int64_t rows, int64_t width, double eps) {
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        Vector sum{}, squares{};
        for (int64_t i = 0; i < width; i += LANES) sum += load(from + i);
        const float mean = sum_of(sum) / float(width);
        for (int64_t i = 0; i < width; i += LANES) squares += (load(from + i) - mean) * (load(from + i) - mean);
        const float scale = 1 / std::sqrt(sum_of(squares) / float(width) + float(eps));
        for (int64_t i = 0; i < width; i += LANES) store(y + row * width + i, (load(from + i) - mean) * scale);
    }
}

void group_norm(const float *x, const float *weight, const float *bias, const float *shortcut, float *y, float *mean,
                float *rstd, int64_t images, int64_t pixels, int64_t channels, double eps, int rectify) {
    const Shape shape{images, pixels, channels};
    each_group(shape, [=](int64_t image, int64_t group) {
        const int64_t start = image * pixels * channels + group * GROUP, which = image * shape.groups() + group;
        const Affine normalized = measure(x + start, shape, weight + group * GROUP, bias + group * GROUP, eps,
                                          mean + which, rstd + which);
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int half = 0; half < 2; half++) {
                const int64_t at = start + pixel * channels + half * LANES;
                Vector value = normalized(load(x + at), half);
                if (shortcut) value += load(shortcut + at);
                store(y + at, rectify ? rectified(value) : value);
            }
    });
}

void group_norm_gradients(const float *incoming, const float *x, const float *y, const float *weight,
                          const float *mean, const float *rstd, float *of_x, float *of_shortcut, float *of_weight,
                          float *of_bias, int64_t images, int64_t pixels, int64_t channels) {
    const Shape shape{images, pixels, channels};
    each_group(shape, [=](int64_t image, int64_t group) {
        const int64_t start = image * pixels * channels + group * GROUP, which = image * shape.groups() + group;
        const auto let_through = [=](int64_t pixel, int half) {
            const int64_t at = start + pixel * channels + half * LANES;
            const Vector value = load(incoming + at);
            if (!y) return value;
            return load(y + at) <= 0.0f ? Vector{} : value;
        };
        const int64_t parameter = which * GROUP;
        norm_gradients(let_through, x + start, of_x + start, shape, weight + group * GROUP, mean[which], rstd[which],
                       of_weight + parameter, of_bias + parameter);
        if (of_shortcut)
            for (int64_t pixel = 0; pixel < pixels; pixel++)
                for (int half = 0; half < 2; half++)
                    store(of_shortcut + start + pixel * channels + half * LANES, let_through(pixel, half));
    });
}

void group_norm_pool(const float *x, const float *weight, const float *bias, float *pooled, uint8_t *origin,
                     float *mean, float *rstd, int64_t images, int64_t height, int64_t width, int64_t channels,
                     double eps) {
    const Shape shape{images, height * width, channels};
    const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
    each_group(shape, [=](int64_t image, int64_t group) {
        const int64_t which = image * shape.groups() + group;
        const float *from = x + image * shape.pixels * channels + group * GROUP;
        const Affine normalized =
            measure(from, shape, weight + group * GROUP, bias + group * GROUP, eps, mean + which, rstd + which);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++) {
                Vector best[2] = {};
                Whole place[2] = {Whole{} + 9, Whole{} + 9};
                for (int i = 0; i < 9; i++) {
                    const int64_t h = 2 * row + i / 3 - 1, w = 2 * column + i % 3 - 1;
                    if (h < 0 || h >= height || w < 0 || w >= width) continue;
                    for (int half = 0; half < 2; half++) {
                        const Vector value = normalized(load(from + (h * width + w) * channels + half * LANES), half);
                        const Whole taken = (value > best[half]) | (value != value);
                        best[half] = taken ? value : best[half];
                        place[half] = taken ? Whole{} + i : place[half];
                    }
                }
                const int64_t at = ((image * rows + row) * columns + column) * channels + group * GROUP;
                for (int half = 0; half < 2; half++) store(pooled + at + half * LANES, best[half]);
                for (int i = 0; i < GROUP; i++) origin[at + i] = uint8_t(place[i / LANES][i % LANES]);
            }
    });
}

void group_norm_pool_gradients(const float *incoming, const float *x, const uint8_t *origin, const float *weight,
                               const float *mean, const float *rstd, float *of_x, float *of_weight, float *of_bias,
                               int64_t images, int64_t height, int64_t width, int64_t channels) {
    const Shape shape{images, height * width, channels};
    const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2;
    each_group(shape, [=](int64_t image, int64_t group) {
        std::vector<float> spread(shape.pixels * GROUP);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++) {
                const int64_t at = ((image * rows + row) * columns + column) * channels + group * GROUP;
                for (int i = 0; i < GROUP; i++) {
                    const int place = origin[at + i];
                    if (place == 9) continue;
                    const int64_t h = 2 * row + place / 3 - 1, w = 2 * column + place % 3 - 1;
                    spread[(h * width + w) * GROUP + i] += incoming[at + i];
                }
            }
        const float *spread_from = spread.data();
        const auto spread_gradient = [=](int64_t pixel, int half) {
            return load(spread_from + pixel * GROUP + half * LANES);
        };
        const int64_t start = image * shape.pixels * channels + group * GROUP;
        const int64_t which = image * shape.groups() + group;
        norm_gradients(spread_gradient, x + start, of_x + start, shape, weight + group * GROUP, mean[which],
                       rstd[which], of_weight + which * GROUP, of_bias + which * GROUP);
    });
}
}

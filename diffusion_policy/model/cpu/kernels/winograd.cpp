// From images to Winograd's points and back; convolution.py says what they are.

#include "vectors.h"

namespace {

template <int TILE> struct Points;

template <> struct Points<3> {  // 0, 1, -1, 2 and infinity
    static constexpr float OF_INPUT[5][5] = {
        {2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}};
    static constexpr float TO_OUTPUT[3][5] = {{1, 1, 1, 1, 0}, {0, 1, -1, 2, 0}, {0, 1, 1, 4, 1}};
};

template <> struct Points<4> {  // 0, 1, -1, 2, -2 and infinity
    static constexpr float OF_INPUT[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                             {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
    static constexpr float TO_OUTPUT[4][6] = {
        {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};
};

// An input tile to points; it begins one pixel before its output tile.
template <int TILE> struct OfInput {
    static constexpr int ROWS = TILE + 2, COLUMNS = TILE + 2, MARGIN = 1;
    static constexpr float at(int row, int column) { return Points<TILE>::OF_INPUT[row][column]; }
};

template <int TILE> struct ToOutput {
    static constexpr int ROWS = TILE, COLUMNS = TILE + 2;
    static constexpr float at(int row, int column) { return Points<TILE>::TO_OUTPUT[row][column]; }
};

// The transpose of ToOutput: the gradient of an output tile to that of points.
template <int TILE> struct OfGradient {
    static constexpr int ROWS = TILE + 2, COLUMNS = TILE, MARGIN = 0;
    static constexpr float at(int row, int column) { return Points<TILE>::TO_OUTPUT[column][row]; }
};

// (matrix @ tile).T, unrolled, without the products with zero.
template <typename Matrix, int WIDTH>
__attribute__((always_inline)) inline void one_way(const Vector (&tile)[Matrix::COLUMNS][WIDTH],
                                                   Vector (&out)[WIDTH][Matrix::ROWS]) {
#pragma GCC unroll 8
    for (int column = 0; column < WIDTH; column++)
#pragma GCC unroll 8
        for (int row = 0; row < Matrix::ROWS; row++) {
            Vector sum{};
#pragma GCC unroll 8
            for (int k = 0; k < Matrix::COLUMNS; k++)
                if (Matrix::at(row, k) != 0) sum += Matrix::at(row, k) * tile[k][column];
            out[column][row] = sum;
        }
}

// matrix @ tile @ matrix.T
template <typename Matrix>
__attribute__((always_inline)) inline void both_ways(const Vector (&tile)[Matrix::COLUMNS][Matrix::COLUMNS],
                                                     Vector (&out)[Matrix::ROWS][Matrix::ROWS]) {
    Vector half[Matrix::COLUMNS][Matrix::ROWS];
    one_way<Matrix>(tile, half);
    one_way<Matrix>(half, out);
}

struct Images {
    int64_t number, height, width, channels;
};

// Calls `work(image, top, left, channel, tile number)` for all tiles and vectors of channels, on all threads.
template <int TILE, typename Work> void each_tile(const Images &images, Work work) {
    const int64_t rows = (images.height + TILE - 1) / TILE, columns = (images.width + TILE - 1) / TILE;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < images.number * rows; row++)
        for (int64_t column = 0; column < columns; column++)
            for (int64_t channel = 0; channel < images.channels; channel += LANES)
                work(row / rows, row % rows * TILE, column * TILE, channel, row * columns + column);
}

template <int TILE> int64_t count_tiles(const Images &images) {
    return images.number * ((images.height + TILE - 1) / TILE) * ((images.width + TILE - 1) / TILE);
}

template <int TILE, typename Matrix> void to_points(const float *pixels, float *points, const Images &images) {
    const int64_t plane = count_tiles<TILE>(images) * images.channels;
    each_tile<TILE>(images, [=](int64_t image, int64_t top, int64_t left, int64_t channel, int64_t number) {
        Vector tile[Matrix::COLUMNS][Matrix::COLUMNS], out[Matrix::ROWS][Matrix::ROWS];
        const float *from = pixels + image * images.height * images.width * images.channels + channel;
        for (int i = 0; i < Matrix::COLUMNS; i++)
            for (int j = 0; j < Matrix::COLUMNS; j++) {
                const int64_t y = top + i - Matrix::MARGIN, x = left + j - Matrix::MARGIN;
                const bool inside = y >= 0 && y < images.height && x >= 0 && x < images.width;
                tile[i][j] = inside ? load(from + (y * images.width + x) * images.channels) : Vector{};
            }
        both_ways<Matrix>(tile, out);
        float *to = points + number * images.channels + channel;
        for (int i = 0; i < Matrix::ROWS; i++)
            for (int j = 0; j < Matrix::ROWS; j++) store(to + (i * Matrix::ROWS + j) * plane, out[i][j]);
    });
}

template <int TILE> void from_points(const float *points, float *pixels, const Images &images) {
    typedef ToOutput<TILE> Matrix;
    const int64_t plane = count_tiles<TILE>(images) * images.channels;
    each_tile<TILE>(images, [=](int64_t image, int64_t top, int64_t left, int64_t channel, int64_t number) {
        Vector tile[Matrix::COLUMNS][Matrix::COLUMNS], out[Matrix::ROWS][Matrix::ROWS];
        const float *from = points + number * images.channels + channel;
        for (int i = 0; i < Matrix::COLUMNS; i++)
            for (int j = 0; j < Matrix::COLUMNS; j++) tile[i][j] = load(from + (i * Matrix::COLUMNS + j) * plane);
        both_ways<Matrix>(tile, out);
        float *to = pixels + image * images.height * images.width * images.channels + channel;
        for (int i = 0; i < TILE && top + i < images.height; i++)
            for (int j = 0; j < TILE && left + j < images.width; j++)
                store(to + ((top + i) * images.width + left + j) * images.channels, out[i][j]);
    });
}

}  // namespace

extern "C" {

void input_points(const float *pixels, float *points, int tile, int64_t number, int64_t height, int64_t width,
                  int64_t channels) {
    const Images images{number, height, width, channels};
    tile == 3 ? to_points<3, OfInput<3>>(pixels, points, images) : to_points<4, OfInput<4>>(pixels, points, images);
}

void gradient_points(const float *pixels, float *points, int tile, int64_t number, int64_t height, int64_t width,
                     int64_t channels) {
    const Images images{number, height, width, channels};
    tile == 3 ? to_points<3, OfGradient<3>>(pixels, points, images)
              : to_points<4, OfGradient<4>>(pixels, points, images);
}

void output_pixels(const float *points, float *pixels, int tile, int64_t number, int64_t height, int64_t width,
                   int64_t channels) {
    const Images images{number, height, width, channels};
    tile == 3 ? from_points<3>(points, pixels, images) : from_points<4>(points, pixels, images);
}
}

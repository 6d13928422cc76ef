// Products of few rows with fixed weights: x (N, I) times weight (O, I) transposed.
//
// The weights lie in panels of PANEL outputs, input by input, so that they are read once from end to end whatever the
// number of rows; a panel stays in the first cache while all rows pass it. Sums are float32, in the order of the inputs.
// bfloat16 weights take half the memory traffic: a 32-bit word holds the same input of output j in its lower half and
// of output j + LANES in its upper half, so that a shift and a mask make two vectors of one load.
// Outputs beyond O in the last panel are zero weights.
#include <omp.h>

#include <algorithm>

#include "simd.h"

namespace {

constexpr int64_t PANEL = 2 * LANES;
constexpr int TALLEST = LANES == 16 ? 12 : 6;  // rows of a tile: two vectors of sums each, all in registers
constexpr int64_t BLOCK = 128;                 // inputs whose part of a panel stays in the first cache

enum Then { STORE, ADD, GATE };  // what becomes of a product p and what is there, o: p, o + p, silu(o) * p

static inline void load_pair(const float *p, vec &a, vec &b) {
    a = load(p);
    b = load(p + LANES);
}

static inline void load_pair(const bf16 *p, vec &a, vec &b) {
    uvec words = *reinterpret_cast<const uvec *>(p), low = words << 16, high = words & 0xffff0000u;
    std::memcpy(&a, &low, sizeof a);
    std::memcpy(&b, &high, sizeof b);
}

static inline vec joined(vec product, vec before, Then then) {
    if (then == ADD) return before + product;
    if (then == GATE) return before * logistic(before) * product;
    return product;
}

// Adds the products of some inputs to the sums of ROWS rows, and fetches what is read next meanwhile.
template <int ROWS, typename W>
void tile(const float *x, int64_t x_stride, const W *panel, int64_t inputs, float *sums, const char *ahead,
          int64_t bytes_ahead) {
    vec a[ROWS], b[ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        a[r] = load(sums + r * PANEL);
        b[r] = load(sums + r * PANEL + LANES);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < inputs; i++) {
        if (i * 64 < bytes_ahead) __builtin_prefetch(ahead + i * 64, 0, 2);
        vec w0, w1;
        load_pair(panel + i * PANEL, w0, w1);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec value = splat(x[r * x_stride + i]);
            a[r] += value * w0;
            b[r] += value * w1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        store(sums + r * PANEL, a[r]);
        store(sums + r * PANEL + LANES, b[r]);
    }
}

template <int ROWS, typename W>
void tile_of(int64_t rows, const float *x, int64_t x_stride, const W *panel, int64_t inputs, float *sums,
             const char *ahead, int64_t bytes_ahead) {
    if (rows == ROWS)
        tile<ROWS>(x, x_stride, panel, inputs, sums, ahead, bytes_ahead);
    else if constexpr (ROWS > 1)
        tile_of<ROWS - 1>(rows, x, x_stride, panel, inputs, sums, ahead, bytes_ahead);
}

void finish(const float *sums, const float *bias, float *out, int64_t columns, Then then) {
    if (columns == PANEL) {
        for (int64_t j = 0; j < PANEL; j += LANES) {
            vec product = load(sums + j);
            if (bias) product += load(bias + j);
            store(out + j, joined(product, then == STORE ? vec{} : load(out + j), then));
        }
        return;
    }
    float edge[2 * PANEL] = {};
    std::copy(sums, sums + columns, edge);
    if (bias)
        for (int64_t j = 0; j < columns; j++) edge[j] += bias[j];
    if (then != STORE) std::copy(out, out + columns, edge + PANEL);
    for (int64_t j = 0; j < PANEL; j += LANES) store(edge + j, joined(load(edge + j), load(edge + PANEL + j), then));
    std::copy(edge, edge + columns, out);
}

template <typename W>
void product(const float *x, int64_t x_stride, const W *panels, const float *bias, float *out, int64_t out_stride,
             int64_t rows, int64_t inputs, int64_t outputs, int64_t then) {
    constexpr int64_t AT_ONCE = 16 * TALLEST;
    int64_t count = (outputs + PANEL - 1) / PANEL;
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        float sums[AT_ONCE * PANEL];
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; p++)
            for (int64_t from = 0; from < rows; from += AT_ONCE) {
                const W *panel = panels + p * PANEL * inputs;
                int64_t group = std::min(AT_ONCE, rows - from), tiles = (group + TALLEST - 1) / TALLEST;
                std::fill(sums, sums + group * PANEL, 0.0f);
                for (int64_t k = 0; k < blocks; k++) {
                    int64_t i = inputs * k / blocks, width = inputs * (k + 1) / blocks - i;
                    const W *block = panel + i * PANEL, *next = block + width * PANEL;
                    bool last = p + 1 == count && k + 1 == blocks;
                    int64_t bytes = last || from > 0 ? 0 : width * PANEL * sizeof(W);
                    for (int64_t t = 0; t < tiles; t++) {  // of nearly equal height
                        int64_t row = group * t / tiles, height = group * (t + 1) / tiles - row;
                        tile_of<TALLEST>(height, x + (from + row) * x_stride + i, x_stride, block, width,
                                         sums + row * PANEL, reinterpret_cast<const char *>(next) + bytes * t / tiles,
                                         bytes * (t + 1) / tiles - bytes * t / tiles);
                    }
                }
                for (int64_t row = 0; row < group; row++)
                    finish(sums + row * PANEL, bias ? bias + p * PANEL : nullptr,
                           out + (from + row) * out_stride + p * PANEL, std::min(PANEL, outputs - p * PANEL),
                           static_cast<Then>(then));
            }
    }
}

// out (N, O) = x (N, I) times a weight (O, I) that is not packed, transposed: x lies in panels of tokens instead, and
// rows of the weight pass them. What a weight costs to pack would be lost again on a few hundred tokens.
void product_by_rows(const float *panels, const float *weight, int64_t stride, float *out, int64_t out_stride,
                     int64_t rows, int64_t inputs, int64_t outputs) {
    constexpr int64_t AT_ONCE = 24;
    int64_t count = (rows + PANEL - 1) / PANEL, groups = (outputs + AT_ONCE - 1) / AT_ONCE;
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float sums[AT_ONCE * PANEL];
        int64_t first = g * AT_ONCE, group = std::min(AT_ONCE, outputs - first);
        int64_t tiles = (group + TALLEST - 1) / TALLEST;
        for (int64_t p = 0; p < count; p++) {
            std::fill(sums, sums + group * PANEL, 0.0f);
            for (int64_t k = 0; k < blocks; k++) {
                int64_t i = inputs * k / blocks, width = inputs * (k + 1) / blocks - i;
                for (int64_t t = 0; t < tiles; t++) {
                    int64_t row = group * t / tiles, height = group * (t + 1) / tiles - row;
                    tile_of<TALLEST>(height, weight + (first + row) * stride + i, stride,
                                     panels + p * PANEL * inputs + i * PANEL, width, sums + row * PANEL, nullptr, 0);
                }
            }
            for (int64_t j = 0; j < std::min(PANEL, rows - p * PANEL); j++) {
                float *target = out + (p * PANEL + j) * out_stride + first;
                for (int64_t row = 0; row < group; row++) target[row] = sums[row * PANEL + j];
            }
        }
    }
}

static inline int64_t place(int64_t j, const float *) { return j; }
static inline int64_t place(int64_t j, const bf16 *) { return j < LANES ? 2 * j : 2 * (j - LANES) + 1; }

template <typename W>
void pack(const float *weight, int64_t stride, W *panels, int64_t inputs, int64_t outputs) {
    int64_t count = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < count; p++)
        for (int64_t j = 0; j < PANEL; j++) {
            int64_t o = p * PANEL + j;
            W *target = panels + p * PANEL * inputs + place(j, panels);
            for (int64_t i = 0; i < inputs; i++) put(target + i * PANEL, o < outputs ? weight[o * stride + i] : 0.0f);
        }
}

}  // namespace

extern "C" {

int64_t panel_outputs() { return PANEL; }

// weight (O, I), stride elements from row to row, into ceil(O / PANEL) panels of (I, PANEL); bfloat16 is rounded to.
void pack_f32(const float *weight, int64_t stride, float *panels, int64_t inputs, int64_t outputs) {
    pack(weight, stride, panels, inputs, outputs);
}
void pack_bf16(const float *weight, int64_t stride, bf16 *panels, int64_t inputs, int64_t outputs) {
    pack(weight, stride, panels, inputs, outputs);
}

// out (N, O) = x (N, I) times the packed weight, plus bias (O) where not null; then: see Then. Named by the weights.
void product_f32(const float *x, int64_t x_stride, const float *panels, const float *bias, float *out,
                 int64_t out_stride, int64_t rows, int64_t inputs, int64_t outputs, int64_t then) {
    product(x, x_stride, panels, bias, out, out_stride, rows, inputs, outputs, then);
}
void product_bf16(const float *x, int64_t x_stride, const bf16 *panels, const float *bias, float *out,
                  int64_t out_stride, int64_t rows, int64_t inputs, int64_t outputs, int64_t then) {
    product(x, x_stride, panels, bias, out, out_stride, rows, inputs, outputs, then);
}

// out (N, O) = x (N, I), packed by pack_f32, times weight (O, I) transposed, stride elements from row to row.
void product_by_rows_f32(const float *panels, const float *weight, int64_t stride, float *out, int64_t out_stride,
                         int64_t rows, int64_t inputs, int64_t outputs) {
    product_by_rows(panels, weight, stride, out, out_stride, rows, inputs, outputs);
}

}  // extern "C"

// Products of few rows with fixed weights: x (N, I) times weight (O, I) transposed.
//
// The weights lie in panels of PANEL outputs, input by input, so that they are read once from end to end for a group
// of rows; a panel stays in the first cache while the group passes it, and the group in the second.
// Sums are float32, in the order of the inputs.
// bfloat16 weights take half the memory traffic: a 32-bit word holds the same input of output j in its lower half and
// of output j + LANES in its upper half, so that a shift and a mask make two vectors of one load.
// Outputs beyond O in the last panel are zero weights.
#include <omp.h>

#include <algorithm>

#include "panel.h"

namespace {

constexpr int TALLEST = LANES == 16 ? 12 : 6;  // rows of a tile: two vectors of sums each, all in registers
constexpr int64_t BLOCK = 144;                 // inputs whose part of a panel stays in the first cache

static inline void load_pair(const float *p, vec &a, vec &b) {
    a = load(p);
    b = load(p + LANES);
}

static inline void load_pair(const bf16 *p, vec &a, vec &b) {
    uvec words = *reinterpret_cast<const uvec *>(p), low = words << 16, high = words & 0xffff0000u;
    std::memcpy(&a, &low, sizeof a);
    std::memcpy(&b, &high, sizeof b);
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
    Rows<float> from(x, x_stride);
#pragma GCC unroll 4
    for (int64_t i = 0; i < inputs; i++, from.next(1)) {
        from.hold();
        if (i * 64 < bytes_ahead) __builtin_prefetch(ahead + i * 64, 0, 2);
        vec w0, w1;
        load_pair(panel + i * PANEL, w0, w1);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec value = splat(*from[r]);
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

template <typename W>
void product(const float *x, int64_t x_stride, const W *panels, const float *bias, float *out, int64_t out_stride,
             int64_t rows, int64_t inputs, int64_t outputs, int64_t then) {
    int64_t count = (outputs + PANEL - 1) / PANEL, groups = (rows + AT_ONCE - 1) / AT_ONCE;
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        alignas(64) float sums[AT_ONCE * PANEL];
        for (int64_t g = 0; g < groups; g++) {
            int64_t from = rows * g / groups, group = rows * (g + 1) / groups - from;
            int64_t tiles = (group + TALLEST - 1) / TALLEST;
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < count; p++) {
                const W *panel = panels + p * PANEL * inputs;
                std::fill(sums, sums + group * PANEL, 0.0f);
                for (int64_t k = 0; k < blocks; k++) {
                    int64_t i = inputs * k / blocks, width = inputs * (k + 1) / blocks - i;
                    const W *block = panel + i * PANEL, *next = block + width * PANEL;
                    bool last = p + 1 == count && k + 1 == blocks;
                    int64_t bytes = last ? 0 : width * PANEL * sizeof(W);
                    for (int64_t t = 0; t < tiles; t++) {  // of nearly equal height
                        int64_t row = group * t / tiles, height = group * (t + 1) / tiles - row;
                        if (k + 1 == blocks)
                            fetch_outputs(out + (from + row) * out_stride + p * PANEL, out_stride, height);
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
}

// out (N, O) = x (N, I) times a weight (O, I) that is not packed, transposed: x lies in panels of tokens instead, and
// rows of the weight pass them. What a weight costs to pack would be lost again on a few hundred tokens.
void product_by_rows(const float *panels, const float *weight, int64_t stride, float *out, int64_t out_stride,
                     int64_t rows, int64_t inputs, int64_t outputs) {
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

// Adds the products of some tokens to ROWS rows of sums, or writes them; ``columns`` (tokens, stride) holds the factors
// of a token side by side. Fetches the sums at ``ahead`` meanwhile.
template <int ROWS>
void sum_over_tokens(const float *columns, int64_t stride, const float *panel, int64_t tokens, float *sums,
                     int64_t sums_stride, bool add, const float *ahead) {
    vec a[ROWS], b[ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        a[r] = add ? load(sums + r * sums_stride) : vec{};
        b[r] = add ? load(sums + r * sums_stride + LANES) : vec{};
        if (ahead) {
            __builtin_prefetch(ahead + r * sums_stride, 1, 2);
            __builtin_prefetch(ahead + r * sums_stride + LANES, 1, 2);
        }
    }
#pragma GCC unroll 4
    for (int64_t n = 0; n < tokens; n++) {
        vec x0 = load(panel + n * PANEL), x1 = load(panel + n * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            vec value = splat(columns[n * stride + r]);
            a[r] += value * x0;
            b[r] += value * x1;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        store(sums + r * sums_stride, a[r]);
        store(sums + r * sums_stride + LANES, b[r]);
    }
}

template <int ROWS>
void sum_of(int64_t rows, const float *columns, int64_t stride, const float *panel, int64_t tokens, float *sums,
            int64_t sums_stride, bool add, const float *ahead) {
    if (rows == ROWS)
        sum_over_tokens<ROWS>(columns, stride, panel, tokens, sums, sums_stride, add, ahead);
    else if constexpr (ROWS > 1)
        sum_of<ROWS - 1>(rows, columns, stride, panel, tokens, sums, sums_stride, add, ahead);
}

// by_weight (O, I) = grad (N, O) transposed times x (N, I), plus what is there where ``add``. A group of outputs is
// copied out of the gradient, whose rows may lie far apart, and passes the panels of x; it stays in the second cache.
void gradient_by_weight(const float *grad, int64_t grad_stride, const float *x, int64_t x_stride, float *panels,
                        float *by_weight, int64_t stride, int64_t tokens, int64_t inputs, int64_t outputs, bool add) {
    constexpr int64_t TOKENS = 384;
    int64_t count = (inputs + PANEL - 1) / PANEL, groups = (outputs + AT_ONCE - 1) / AT_ONCE;
    int64_t blocks = (tokens + TOKENS - 1) / TOKENS;
#pragma omp parallel
    {
        float columns[AT_ONCE * TOKENS];
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; p++) {
            int64_t width = std::min(PANEL, inputs - p * PANEL);
            for (int64_t n = 0; n < tokens; n++) {
                float *target = panels + (p * tokens + n) * PANEL;
                std::copy(x + n * x_stride + p * PANEL, x + n * x_stride + p * PANEL + width, target);
                std::fill(target + width, target + PANEL, 0.0f);
            }
        }
        for (int64_t k = 0; k < blocks; k++) {
            int64_t n = tokens * k / blocks, height = tokens * (k + 1) / blocks - n;
            bool adds = add || k > 0;
            // Each thread comes back to the same outputs in each block.
#pragma omp for schedule(static) nowait
            for (int64_t g = 0; g < groups; g++) {
                int64_t first = outputs * g / groups, group = outputs * (g + 1) / groups - first;
                int64_t tiles = (group + TALLEST - 1) / TALLEST;
                for (int64_t i = 0; i < height; i++) {
                    const float *source = grad + (n + i) * grad_stride + first;
                    std::copy(source, source + group, columns + i * group);
                }
                for (int64_t p = 0; p < count; p++) {
                    const float *panel = panels + (p * tokens + n) * PANEL;
                    int64_t width = std::min(PANEL, inputs - p * PANEL);
                    bool whole = width == PANEL, fetch = adds && inputs - p * PANEL >= 2 * PANEL;
                    for (int64_t t = 0; t < tiles; t++) {
                        int64_t row = group * t / tiles, rows = group * (t + 1) / tiles - row;
                        float *target = by_weight + (first + row) * stride + p * PANEL;
                        float edge[TALLEST * PANEL] = {};
                        for (int64_t j = 0; !whole && adds && j < rows; j++)
                            std::copy(target + j * stride, target + j * stride + width, edge + j * PANEL);
                        sum_of<TALLEST>(rows, columns + row, group, panel, height, whole ? target : edge,
                                        whole ? stride : PANEL, adds, fetch ? target + PANEL : nullptr);
                        for (int64_t j = 0; !whole && j < rows; j++)
                            std::copy(edge + j * PANEL, edge + j * PANEL + width, target + j * stride);
                    }
                }
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
    for (int64_t p = 0; p < count; p++) {
        const float *first = weight + p * PANEL * stride;
        W *target = panels + p * PANEL * inputs;
        int64_t columns = std::min(PANEL, outputs - p * PANEL);
        for (int64_t i = 0; i < inputs; i++, target += PANEL) {
            for (int64_t j = 0; j < columns; j++) put(target + place(j, panels), first[j * stride + i]);
            for (int64_t j = columns; j < PANEL; j++) put(target + place(j, panels), 0.0f);
        }
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

// by_weight (O, I), stride elements from row to row, = (or += where add) grad (N, O) transposed times x (N, I);
// panels: memory for N times the inputs, rounded up to whole panels.
void gradient_by_weight_f32(const float *grad, int64_t grad_stride, const float *x, int64_t x_stride, float *panels,
                            float *by_weight, int64_t stride, int64_t tokens, int64_t inputs, int64_t outputs,
                            int64_t add) {
    gradient_by_weight(grad, grad_stride, x, x_stride, panels, by_weight, stride, tokens, inputs, outputs, add != 0);
}

}  // extern "C"

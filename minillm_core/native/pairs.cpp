// Products of bfloat16 rows with fixed bfloat16 weights: x (N, I) times weight (O, I) transposed, I even.
//
// Inputs are taken two at a time: a 32-bit word of a panel holds the weights of inputs 2i (lower half) and 2i + 1 of one
// output, a word of x the two inputs themselves, and a step adds both products to the output's sum. Processors with
// avx512_bf16 have an instruction for it, at twice the rate of float32; others widen the halves.
// The weights lie in panels of PANEL outputs, pair by pair, and are read once from end to end for a group of rows.
// Sums are float32. Outputs beyond O in the last panel are zero weights.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "panel.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

constexpr int TALLEST = LANES == 16 ? 12 : 4;  // rows of a tile: two vectors of sums each, all in registers
constexpr int64_t BLOCK = 256;                 // pairs whose part of a panel stays in the first cache

// sum + low(x) low(w) + high(x) high(w)
static inline vec plus_pairs(vec sum, uvec x, uvec w) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    uvec x0 = x << 16, x1 = x & 0xffff0000u, w0 = w << 16, w1 = w & 0xffff0000u;
    vec low_x, high_x, low_w, high_w;
    std::memcpy(&low_x, &x0, sizeof x0);
    std::memcpy(&high_x, &x1, sizeof x1);
    std::memcpy(&low_w, &w0, sizeof w0);
    std::memcpy(&high_w, &w1, sizeof w1);
    return (sum + low_x * low_w) + high_x * high_w;
#endif
}

static inline uvec splat_pair(const bf16 *p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word - uvec{};
}

// Adds the products of some pairs to the sums of ROWS rows, and fetches what is read next meanwhile.
template <int ROWS>
void tile(const bf16 *x, int64_t x_stride, const uint32_t *panel, int64_t pairs, float *sums, const char *ahead,
          int64_t bytes_ahead) {
    vec a[ROWS], b[ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        a[r] = load(sums + r * PANEL);
        b[r] = load(sums + r * PANEL + LANES);
    }
    Rows<bf16> from(x, x_stride);
#pragma GCC unroll 4
    for (int64_t i = 0; i < pairs; i++, from.next(2)) {
        from.hold();
        if (i * 128 < bytes_ahead) {
            __builtin_prefetch(ahead + i * 128, 0, 2);
            __builtin_prefetch(ahead + i * 128 + 64, 0, 2);
        }
        uvec w0 = *reinterpret_cast<const uvec *>(panel + i * PANEL);
        uvec w1 = *reinterpret_cast<const uvec *>(panel + i * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            uvec both = splat_pair(from[r]);
            a[r] = plus_pairs(a[r], both, w0);
            b[r] = plus_pairs(b[r], both, w1);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        store(sums + r * PANEL, a[r]);
        store(sums + r * PANEL + LANES, b[r]);
    }
}

template <int ROWS>
void tile_of(int64_t rows, const bf16 *x, int64_t x_stride, const uint32_t *panel, int64_t pairs, float *sums,
             const char *ahead, int64_t bytes_ahead) {
    if (rows == ROWS)
        tile<ROWS>(x, x_stride, panel, pairs, sums, ahead, bytes_ahead);
    else if constexpr (ROWS > 1)
        tile_of<ROWS - 1>(rows, x, x_stride, panel, pairs, sums, ahead, bytes_ahead);
}

template <typename T>
void rounded(const T *from, bf16 *to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    for (; i < count; i++) put(to + i, get(from + i));
}

template <typename T>
void pack_pairs(const T *weight, int64_t stride, uint32_t *panels, int64_t inputs, int64_t outputs) {
    int64_t count = (outputs + PANEL - 1) / PANEL, pairs = inputs / 2;
#pragma omp parallel
    {
        std::vector<bf16> rows(PANEL * inputs);  // of one panel, those that are not there being zeros
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; p++) {
            for (int64_t j = 0; j < PANEL; j++) {
                bf16 *target = rows.data() + j * inputs;
                if (p * PANEL + j < outputs)
                    rounded(weight + (p * PANEL + j) * stride, target, inputs);
                else
                    std::fill(target, target + inputs, bf16{0});
            }
            uint32_t *panel = panels + p * PANEL * pairs;
            for (int64_t i = 0; i < pairs; i++, panel += PANEL)
                for (int64_t j = 0; j < PANEL; j++)
                    std::memcpy(panel + j, rows.data() + j * inputs + 2 * i, sizeof(uint32_t));
        }
    }
}

}  // namespace

extern "C" {

// Panels of the pairs of a weight (O, I): rounded-up outputs times I / 2 words. float32 is rounded.
void pack_pairs_f32(const float *weight, int64_t stride, uint32_t *panels, int64_t inputs, int64_t outputs) {
    pack_pairs(weight, stride, panels, inputs, outputs);
}
void pack_pairs_bf16(const bf16 *weight, int64_t stride, uint32_t *panels, int64_t inputs, int64_t outputs) {
    pack_pairs(weight, stride, panels, inputs, outputs);
}

// out (N, O), as `then` says, from x (N, I) and packed weights.
void product_of_pairs_bf16(const bf16 *x, int64_t x_stride, const uint32_t *panels, const bf16 *bias, bf16 *out,
                           int64_t out_stride, int64_t rows, int64_t inputs, int64_t outputs, int64_t then) {
    int64_t count = (outputs + PANEL - 1) / PANEL, groups = (rows + AT_ONCE - 1) / AT_ONCE;
    int64_t pairs = inputs / 2, blocks = (pairs + BLOCK - 1) / BLOCK;
#pragma omp parallel
    {
        alignas(64) float sums[AT_ONCE * PANEL];
        for (int64_t g = 0; g < groups; g++) {
            int64_t from = rows * g / groups, group = rows * (g + 1) / groups - from;
            int64_t tiles = (group + TALLEST - 1) / TALLEST;
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < count; p++) {
                const uint32_t *panel = panels + p * PANEL * pairs;
                std::fill(sums, sums + group * PANEL, 0.0f);
                for (int64_t k = 0; k < blocks; k++) {
                    int64_t i = pairs * k / blocks, width = pairs * (k + 1) / blocks - i;
                    const uint32_t *block = panel + i * PANEL, *next = block + width * PANEL;
                    int64_t lines = p + 1 == count && k + 1 == blocks ? 0 : width * PANEL / 16;
                    for (int64_t t = 0; t < tiles; t++) {  // of nearly equal height
                        int64_t row = group * t / tiles, height = group * (t + 1) / tiles - row;
                        int64_t line = lines * t / tiles;
                        tile_of<TALLEST>(height, x + (from + row) * x_stride + 2 * i, x_stride, block, width,
                                         sums + row * PANEL, reinterpret_cast<const char *>(next) + line * 64,
                                         (lines * (t + 1) / tiles - line) * 64);
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

}  // extern "C"

// Products of bfloat16 rows with fixed bfloat16 weights: x (N, I) times weight (O, I) transposed, I even.
//
// Inputs are taken two at a time: a 32-bit word of a panel holds the weights of inputs 2i (lower half) and 2i + 1 of one
// output, a word of x the two inputs themselves, and a step adds both products to the output's sum. Processors with
// avx512_bf16 have an instruction for it, on AMD's at twice the rate of float32; others widen the halves. Those with
// amx_bf16 have a unit for 16 rows, 16 outputs and 16 pairs at a time, which reads a panel as it lies.
// The weights lie in panels of PANEL outputs, pair by pair, and are read once from end to end for a group of rows.
// Sums are float32. Outputs beyond O in the last panel are zero weights.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "panel.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#define MATRIX_UNIT
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int TALLEST = LANES == 16 ? 12 : 4;  // rows of a tile: two vectors of sums each, all in registers
constexpr int64_t BLOCK = 256;                 // pairs whose part of a panel stays in the first cache
#if defined(MATRIX_UNIT)
constexpr int64_t GROUP = 2 * AT_ONCE;  // the unit is too fast to read the weights more often
#else
constexpr int64_t GROUP = AT_ONCE;
#endif

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

// Adds the products of some pairs to the sums of a group of rows, and fetches some lines of what is read next meanwhile.
void by_vectors(const bf16 *x, int64_t x_stride, int64_t rows, const uint32_t *panel, int64_t pairs, float *sums,
                const char *ahead, int64_t lines) {
    int64_t tiles = (rows + TALLEST - 1) / TALLEST;
    for (int64_t t = 0; t < tiles; t++) {  // of nearly equal height
        int64_t row = rows * t / tiles, height = rows * (t + 1) / tiles - row, line = lines * t / tiles;
        tile_of<TALLEST>(height, x + row * x_stride, x_stride, panel, pairs, sums + row * PANEL, ahead + line * 64,
                         (lines * (t + 1) / tiles - line) * 64);
    }
}

#if defined(MATRIX_UNIT)

constexpr int64_t AT_A_TIME = 16;  // rows, outputs and pairs that the unit takes

// Whether the system lets this process use the unit; it has to be asked once.
static bool matrix_unit() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    static const bool allowed = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return allowed;
}

// Gives the unit's registers their shapes: 0 to 3 sums of `first` (0, 1) and `second` rows, 4 and 5 their inputs, 6 and 7
// weights of 16 outputs each.
static void shape_registers(int64_t first, int64_t second) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {};
    shapes.palette = 1;
    const int64_t rows[8] = {first, first, second, second, first, second, AT_A_TIME, AT_A_TIME};
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = static_cast<uint8_t>(rows[i]);
        shapes.row_bytes[i] = rows[i] ? 64 : 0;
    }
    _tile_loadconfig(&shapes);
}

// Eight lines of a panel that is read from end to end, some steps of the unit before they are needed. In one go the lines
// of a step would fill the queue that the unit's own reads need.
static inline void fetch_some(const uint32_t *panel, int64_t first_line) {
    constexpr int64_t distance = 4 * AT_A_TIME * PANEL;
#pragma GCC unroll 8
    for (int64_t line = first_line; line < first_line + 8; line++) __builtin_prefetch(panel + distance + 16 * line);
}

// The same as `tile`, with the registers shaped for its rows; pairs in whole steps of 16.
template <bool TWO, bool FETCH>
void tile_in_unit(const bf16 *x, int64_t x_stride, const uint32_t *panel, int64_t pairs, float *sums) {
    constexpr int64_t line = PANEL * sizeof(float);
    float *more_sums = sums + AT_A_TIME * PANEL;
    const bf16 *more_x = x + AT_A_TIME * x_stride;
    _tile_loadd(0, sums, line);
    _tile_loadd(1, sums + AT_A_TIME, line);
    if constexpr (TWO) {
        _tile_loadd(2, more_sums, line);
        _tile_loadd(3, more_sums + AT_A_TIME, line);
    }
    for (int64_t i = 0; i < pairs; i += AT_A_TIME, panel += AT_A_TIME * PANEL) {
        _tile_loadd(6, panel, line);
        if constexpr (FETCH) fetch_some(panel, 0);
        _tile_loadd(7, panel + AT_A_TIME, line);
        if constexpr (FETCH) fetch_some(panel, 8);
        _tile_loadd(4, x + 2 * i, x_stride * sizeof(bf16));
        if constexpr (FETCH) fetch_some(panel, 16);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (FETCH) fetch_some(panel, 24);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (TWO) {
            _tile_loadd(5, more_x + 2 * i, x_stride * sizeof(bf16));
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, line);
    _tile_stored(1, sums + AT_A_TIME, line);
    if constexpr (TWO) {
        _tile_stored(2, more_sums, line);
        _tile_stored(3, more_sums + AT_A_TIME, line);
    }
}

// The same as `by_vectors`, but that it fetches what it needs itself.
void by_unit(const bf16 *x, int64_t x_stride, int64_t rows, const uint32_t *panel, int64_t pairs, float *sums,
             const char *, int64_t) {
    int64_t whole = pairs / AT_A_TIME * AT_A_TIME, tiles = (rows + 2 * AT_A_TIME - 1) / (2 * AT_A_TIME), shaped = 0;
    for (int64_t t = 0; whole > 0 && t < tiles; t++) {
        int64_t row = rows * t / tiles, height = rows * (t + 1) / tiles - row;
        if (height != shaped) shape_registers(std::min(height, AT_A_TIME), std::max<int64_t>(height - AT_A_TIME, 0));
        shaped = height;
        auto tile = height > AT_A_TIME ? (t == 0 ? tile_in_unit<true, true> : tile_in_unit<true, false>)
                                       : (t == 0 ? tile_in_unit<false, true> : tile_in_unit<false, false>);
        tile(x + row * x_stride, x_stride, panel, whole, sums + row * PANEL);
    }
    _tile_release();
    if (whole < pairs)
        by_vectors(x + 2 * whole, x_stride, rows, panel + whole * PANEL, pairs - whole, sums, nullptr, 0);
}

#endif

// Where the k-th block of pairs begins: blocks of nearly equal width, of whole steps of the matrix unit but the last.
static int64_t edge(int64_t pairs, int64_t k, int64_t blocks) {
    return k == blocks ? pairs : pairs * k / blocks / 16 * 16;
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
    int64_t count = (outputs + PANEL - 1) / PANEL, groups = (rows + GROUP - 1) / GROUP;
    int64_t pairs = inputs / 2, blocks = (pairs + BLOCK - 1) / BLOCK;
    auto add_products = by_vectors;
#if defined(MATRIX_UNIT)
    if (matrix_unit()) add_products = by_unit;
#endif
#pragma omp parallel
    {
        alignas(64) float sums[GROUP * PANEL];
        for (int64_t g = 0; g < groups; g++) {
            int64_t from = rows * g / groups, group = rows * (g + 1) / groups - from;
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < count; p++) {
                const uint32_t *panel = panels + p * PANEL * pairs;
                std::fill(sums, sums + group * PANEL, 0.0f);
                for (int64_t k = 0; k < blocks; k++) {
                    int64_t i = edge(pairs, k, blocks), width = edge(pairs, k + 1, blocks) - i;
                    const uint32_t *block = panel + i * PANEL, *next = block + width * PANEL;
                    int64_t lines = p + 1 == count && k + 1 == blocks ? 0 : width * PANEL / 16;
                    add_products(x + from * x_stride + 2 * i, x_stride, group, block, width, sums,
                                 reinterpret_cast<const char *>(next), lines);
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

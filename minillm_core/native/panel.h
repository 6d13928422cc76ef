// What the kernels share that multiply by weights in panels of outputs.
#pragma once

#include <algorithm>

#include "simd.h"

namespace {

constexpr int64_t PANEL = 2 * LANES;
constexpr int64_t AT_ONCE = 96;  // rows that stay in the second cache while all panels pass them

enum Then { STORE, ADD, GATE };  // what becomes of a product p and what is there, o: p, o + p, silu(o) * p

static inline vec joined(vec product, vec before, Then then) {
    if (then == ADD) return before + product;
    if (then == GATE) return before * logistic(before) * product;
    return product;
}

// Rows of x a tile reads column by column, four to a pointer: with one for each they would not fit the registers, and
// what the compiler does about it costs a tenth of the time.
template <typename T>
struct Rows {
    const char *first[3];
    int64_t stride, three;

    Rows(const T *x, int64_t elements) : stride(elements * sizeof(T)), three(3 * elements * sizeof(T)) {
        for (int g = 0; g < 3; g++) first[g] = reinterpret_cast<const char *>(x) + 4 * g * stride;
    }

    // Says that anything may have happened to the pointers: otherwise the compiler would have one for each row again.
    void hold() { asm("" : "+r"(first[0]), "+r"(first[1]), "+r"(first[2]), "+r"(stride), "+r"(three)); }

    const T *operator[](int row) const {
        int rest = row % 4;
        return reinterpret_cast<const T *>(first[row / 4] + (rest == 3 ? three : rest * stride));
    }

    void next(int64_t elements) {
        for (const char *&pointer : first) pointer += elements * sizeof(T);
    }
};

// Asks for the places of one panel's outputs in some rows, to be there when the sums are done.
template <typename T>
void fetch_outputs(const T *out, int64_t stride, int64_t rows) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0; j < PANEL; j += 64 / sizeof(T)) __builtin_prefetch(out + row * stride + j, 1);
}

// Makes the outputs of one panel and one row of its sums: `columns` of them, fewer than PANEL at the edge.
template <typename T>
void finish(const float *sums, const T *bias, T *out, int64_t columns, Then then) {
    T edge[2 * PANEL] = {};
    T *target = out;
    if (columns < PANEL) {
        if (then != STORE) std::copy(out, out + columns, edge);
        if (bias) {
            std::copy(bias, bias + columns, edge + PANEL);
            bias = edge + PANEL;
        }
        target = edge;
    }
    for (int64_t j = 0; j < PANEL; j += LANES) {
        vec product = load(sums + j);
        if (bias) product += load(bias + j);
        store(target + j, joined(product, then == STORE ? vec{} : load(target + j), then));
    }
    if (columns < PANEL) std::copy(edge, edge + columns, out);
}

}  // namespace

// Causal attention of rows that stand one behind the other, forward and backward, and of one decoding step.
//
// Query heads come in groups of G that share a key-value head. A row sees itself alone: token i the tokens
// max(0, i - window + 1) to i of its row (window 0: all before it). Everything is computed in float32.
// Axes: N tokens of all rows joined, H query heads, R key-value heads, G = H / R, d width of a head,
// B decoding rows, W columns of the cache, P positions.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t BLOCK = 32;  // queries of one piece of work: their scores stay in the cache

int64_t rounded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// One thread's scratch, grown where it is too small and kept from call to call.
struct Scratch {
    std::vector<float> memory;
    float *take(size_t count) {
        if (memory.size() < count) memory.resize(count);
        return memory.data();
    }
};

thread_local Scratch scratch;

// out (rows, columns) = a (rows, depth) @ b (depth, columns); columns is a multiple of LANES.
// a and out have a stride from row to row, b too.
template <int ROWS>
void product_rows(const float *a, int64_t a_stride, const float *b, int64_t b_stride, float *out, int64_t out_stride,
                  int64_t depth, int64_t columns) {
    int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) {
        vec left[ROWS] = {}, right[ROWS] = {};
        for (int64_t k = 0; k < depth; k++) {
            vec b0 = load(b + k * b_stride + j), b1 = load(b + k * b_stride + j + LANES);
            for (int i = 0; i < ROWS; i++) {
                float scalar = a[i * a_stride + k];
                left[i] += scalar * b0;
                right[i] += scalar * b1;
            }
        }
        for (int i = 0; i < ROWS; i++) {
            store(out + i * out_stride + j, left[i]);
            store(out + i * out_stride + j + LANES, right[i]);
        }
    }
    for (; j < columns; j += LANES) {
        vec left[ROWS] = {};
        for (int64_t k = 0; k < depth; k++) {
            vec b0 = load(b + k * b_stride + j);
            for (int i = 0; i < ROWS; i++) left[i] += a[i * a_stride + k] * b0;
        }
        for (int i = 0; i < ROWS; i++) store(out + i * out_stride + j, left[i]);
    }
}

void product(const float *a, int64_t a_stride, const float *b, int64_t b_stride, float *out, int64_t out_stride,
             int64_t rows, int64_t depth, int64_t columns) {
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8)
        product_rows<8>(a + i * a_stride, a_stride, b, b_stride, out + i * out_stride, out_stride, depth, columns);
    for (; i + 2 <= rows; i += 2)
        product_rows<2>(a + i * a_stride, a_stride, b, b_stride, out + i * out_stride, out_stride, depth, columns);
    for (; i < rows; i++)
        product_rows<1>(a + i * a_stride, a_stride, b, b_stride, out + i * out_stride, out_stride, depth, columns);
}

// out (columns of a, width) += a.T @ b, a (depth, rows), b (depth, width): rows of out ROWS at a time.
template <int ROWS>
void outer_rows(const float *a, int64_t a_stride, const float *b, int64_t b_stride, float *out, int64_t out_stride,
                int64_t depth, int64_t width) {
    int64_t j = 0;
    for (; j + 2 * LANES <= width; j += 2 * LANES) {
        vec left[ROWS], right[ROWS];
        for (int i = 0; i < ROWS; i++) {
            left[i] = load(out + i * out_stride + j);
            right[i] = load(out + i * out_stride + j + LANES);
        }
        for (int64_t k = 0; k < depth; k++) {
            vec b0 = load(b + k * b_stride + j), b1 = load(b + k * b_stride + j + LANES);
            for (int i = 0; i < ROWS; i++) {
                float scalar = a[k * a_stride + i];
                left[i] += scalar * b0;
                right[i] += scalar * b1;
            }
        }
        for (int i = 0; i < ROWS; i++) {
            store(out + i * out_stride + j, left[i]);
            store(out + i * out_stride + j + LANES, right[i]);
        }
    }
    for (; j + LANES <= width; j += LANES) {
        vec left[ROWS];
        for (int i = 0; i < ROWS; i++) left[i] = load(out + i * out_stride + j);
        for (int64_t k = 0; k < depth; k++) {
            vec b0 = load(b + k * b_stride + j);
            for (int i = 0; i < ROWS; i++) left[i] += a[k * a_stride + i] * b0;
        }
        for (int i = 0; i < ROWS; i++) store(out + i * out_stride + j, left[i]);
    }
}

void outer(const float *a, int64_t a_stride, const float *b, int64_t b_stride, float *out, int64_t out_stride,
           int64_t rows, int64_t depth, int64_t width) {
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8)
        outer_rows<8>(a + i, a_stride, b, b_stride, out + i * out_stride, out_stride, depth, width);
    for (; i < rows; i++)
        outer_rows<1>(a + i, a_stride, b, b_stride, out + i * out_stride, out_stride, depth, width);
}

// (tokens, d) with a stride, transposed to (d, tokens) with another; what lies behind the tokens becomes 0.
void transpose(const float *x, int64_t stride, float *out, int64_t out_stride, int64_t tokens, int64_t d) {
    for (int64_t i = 0; i < d; i++) {
        for (int64_t t = 0; t < tokens; t++) out[i * out_stride + t] = x[t * stride + i];
        for (int64_t t = tokens; t < out_stride; t++) out[i * out_stride + t] = 0.0f;
    }
}

// (tokens, d) with a stride, copied to rows of d_padded numbers, zero behind d and behind the tokens.
void gather(const float *x, int64_t stride, float *out, int64_t d_padded, int64_t tokens, int64_t d) {
    for (int64_t t = 0; t < tokens; t++) {
        std::memcpy(out + t * d_padded, x + t * stride, d * sizeof(float));
        for (int64_t i = d; i < d_padded; i++) out[t * d_padded + i] = 0.0f;
    }
}

struct Span {
    int64_t row, head, first, last;  // queries first to last (exclusive) of a row, for one key-value head
};

int64_t lowest_seen(int64_t query, int64_t window) { return window > 0 ? std::max<int64_t>(0, query - window + 1) : 0; }

}  // namespace

extern "C" {

// q (N, H, d), k and v (N, R, d), each with its stride from token to token; offsets (B + 1) of the rows in N.
// out (N, H, d) contiguous, log_sums (N, H): logarithm of the sum of each query's exponentials (for the backward pass).
void rows_attention_f32(const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v,
                        int64_t v_stride, const int64_t *offsets, int64_t rows, int64_t heads, int64_t kv_heads,
                        int64_t d, int64_t window, float scale, float *out, float *log_sums) {
    const int64_t group = heads / kv_heads, d_padded = rounded(d);
    std::vector<Span> work;
    for (int64_t row = 0; row < rows; row++) {
        int64_t length = offsets[row + 1] - offsets[row];
        // The longest pieces first, so that no thread is left with one at the end.
        for (int64_t first = (length - 1) / (4 * BLOCK) * 4 * BLOCK; first >= 0 && length > 0; first -= 4 * BLOCK)
            for (int64_t head = 0; head < kv_heads; head++)
                work.push_back({row, head, first, std::min(length, first + 4 * BLOCK)});
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t item = 0; item < work.size(); item++) {
        const Span span = work[item];
        const int64_t base = offsets[span.row], low = lowest_seen(span.first, window), high = span.last;
        const int64_t seen = high - low, seen_padded = rounded(seen);
        float *keys = scratch.take(d * seen_padded + seen * d_padded + BLOCK * (seen_padded + d_padded));
        float *values = keys + d * seen_padded, *scores = values + seen * d_padded, *mixed = scores + BLOCK * seen_padded;
        transpose(k + (base + low) * k_stride + span.head * d, k_stride, keys, seen_padded, seen, d);
        gather(v + (base + low) * v_stride + span.head * d, v_stride, values, d_padded, seen, d);
        for (int64_t g = 0; g < group; g++) {
            const int64_t head = span.head * group + g;
            for (int64_t first = span.first; first < span.last; first += BLOCK) {
                const int64_t count = std::min(BLOCK, span.last - first), columns = rounded(first + count - low);
                product(q + (base + first) * q_stride + head * d, q_stride, keys, seen_padded, scores, seen_padded,
                        count, d, columns);
                for (int64_t i = 0; i < count; i++) {
                    const int64_t begin = lowest_seen(first + i, window) - low, end = first + i + 1 - low;
                    float *line = scores + i * seen_padded;
                    for (int64_t j = 0; j < begin; j++) line[j] = -INFINITY;
                    for (int64_t j = end; j < columns; j++) line[j] = -INFINITY;
                    vec top = splat(-INFINITY);
                    for (int64_t j = 0; j < columns; j += LANES) top = larger(top, load(line + j));
                    const float most = largest(top) * scale;
                    vec total{};
                    for (int64_t j = 0; j < columns; j += LANES) {
                        vec weight = exponential(load(line + j) * scale - most);
                        total += weight;
                        store(line + j, weight);
                    }
                    const float mass = sum(total), inverse = 1.0f / mass;
                    for (int64_t j = 0; j < columns; j += LANES) store(line + j, load(line + j) * inverse);
                    if (log_sums) log_sums[(base + first + i) * heads + head] = most + std::log(mass);
                }
                product(scores, seen_padded, values, d_padded, mixed, d_padded, count, first + count - low, d_padded);
                for (int64_t i = 0; i < count; i++)
                    std::memcpy(out + ((base + first + i) * heads + head) * d, mixed + i * d_padded, d * sizeof(float));
            }
        }
    }
}

// The gradients of the above, by_q (N, H, d), by_k and by_v (N, R, d), contiguous.
void rows_attention_backward_f32(const float *q, int64_t q_stride, const float *k, int64_t k_stride, const float *v,
                                 int64_t v_stride, const float *out, const float *log_sums, const float *grad,
                                 const int64_t *offsets, int64_t rows, int64_t heads, int64_t kv_heads, int64_t d,
                                 int64_t window, float scale, float *by_q, float *by_k, float *by_v) {
    const int64_t group = heads / kv_heads, d_padded = rounded(d);
    std::vector<Span> work;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < kv_heads; head++) work.push_back({row, head, 0, offsets[row + 1] - offsets[row]});
    std::stable_sort(work.begin(), work.end(), [](const Span &a, const Span &b) { return a.last > b.last; });
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t item = 0; item < work.size(); item++) {
        const Span span = work[item];
        const int64_t base = offsets[span.row], length = span.last, padded = rounded(length);
        if (length == 0) continue;
        float *keys = scratch.take(2 * d * padded + 3 * length * d_padded + 2 * BLOCK * padded + 3 * BLOCK * d_padded);
        float *values = keys + d * padded, *key_rows = values + d * padded, *dk = key_rows + length * d_padded;
        float *dv = dk + length * d_padded, *weights = dv + length * d_padded, *slopes = weights + BLOCK * padded;
        float *queries = slopes + BLOCK * padded, *given = queries + BLOCK * d_padded, *dq = given + BLOCK * d_padded;
        transpose(k + base * k_stride + span.head * d, k_stride, keys, padded, length, d);
        transpose(v + base * v_stride + span.head * d, v_stride, values, padded, length, d);
        gather(k + base * k_stride + span.head * d, k_stride, key_rows, d_padded, length, d);
        std::fill(dk, dk + 2 * length * d_padded, 0.0f);
        for (int64_t g = 0; g < group; g++) {
            const int64_t head = span.head * group + g;
            for (int64_t first = 0; first < length; first += BLOCK) {
                const int64_t count = std::min(BLOCK, length - first), end = first + count;
                // Columns before low are seen by none of these queries; both ends are whole vectors.
                const int64_t low = lowest_seen(first, window) / LANES * LANES, columns = rounded(end) - low;
                const float *grads = grad + ((base + first) * heads + head) * d;
                const float *outs = out + ((base + first) * heads + head) * d;
                gather(q + (base + first) * q_stride + head * d, q_stride, queries, d_padded, count, d);
                gather(grads, heads * d, given, d_padded, count, d);
                product(queries, d_padded, keys + low, padded, weights, padded, count, d, columns);
                product(given, d_padded, values + low, padded, slopes, padded, count, d, columns);
                for (int64_t i = 0; i < count; i++) {
                    const int64_t begin = lowest_seen(first + i, window) - low, stop = first + i + 1 - low;
                    float *weight = weights + i * padded, *slope = slopes + i * padded;
                    float mean = 0.0f;
                    for (int64_t x = 0; x < d; x++) mean += grads[i * heads * d + x] * outs[i * heads * d + x];
                    const float log_sum = log_sums[(base + first + i) * heads + head];
                    for (int64_t j = 0; j < begin; j++) weight[j] = -INFINITY;
                    for (int64_t j = stop; j < columns; j++) weight[j] = -INFINITY;
                    for (int64_t j = 0; j < columns; j += LANES) {
                        vec p = exponential(load(weight + j) * scale - log_sum);
                        store(weight + j, p);
                        store(slope + j, p * (load(slope + j) - mean) * scale);
                    }
                }
                const int64_t used = end - low;
                product(slopes, padded, key_rows + low * d_padded, d_padded, dq, d_padded, count, used, d_padded);
                for (int64_t i = 0; i < count; i++)
                    std::memcpy(by_q + ((base + first + i) * heads + head) * d, dq + i * d_padded, d * sizeof(float));
                outer(slopes, padded, queries, d_padded, dk + low * d_padded, d_padded, used, count, d_padded);
                outer(weights, padded, given, d_padded, dv + low * d_padded, d_padded, used, count, d_padded);
            }
        }
        for (int64_t t = 0; t < length; t++) {
            const int64_t place = ((base + t) * kv_heads + span.head) * d;
            std::memcpy(by_k + place, dk + t * d_padded, d * sizeof(float));
            std::memcpy(by_v + place, dv + t * d_padded, d * sizeof(float));
        }
    }
}

}  // extern "C"

namespace {

template <typename T>
void norm_head(float *x, const T *weight, int64_t d, float eps) {
    float total = 0.0f;
    for (int64_t i = 0; i < d; i++) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / d + eps);
    for (int64_t i = 0; i < d; i++) x[i] = x[i] * scale * get(weight + i);
}

// Pairs lie side by side: (2i, 2i + 1) is a complex number, times the rotation.
void rotate_pairs(float *x, const float *rotation, int64_t d) {
    for (int64_t i = 0; i < d; i += 2) {
        const float a = x[i], b = x[i + 1], c = rotation[i], s = rotation[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

template <typename T>
void rotate(const T *qkv, const float *rotations, const int64_t *positions, const T *q_norm, const T *k_norm, float eps,
            int64_t tokens, int64_t heads, int64_t kv_heads, int64_t d, float *out) {
    const int64_t all = heads + 2 * kv_heads;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        const float *rotation = rotations + positions[n] * d;
        for (int64_t h = 0; h < all; h++) {
            const T *from = qkv + (n * all + h) * d;
            float *to = out + (n * all + h) * d;
            for (int64_t i = 0; i < d; i++) to[i] = get(from + i);
            if (h >= heads + kv_heads) continue;
            const T *weight = h < heads ? q_norm : k_norm;
            if (weight) norm_head(to, weight, d, eps);
            rotate_pairs(to, rotation, d);
        }
    }
}

// Products of a query with some keys that lie d after one another, times scale.
void score(const float *query, const float *keys, int64_t count, int64_t d, float scale, float *scores) {
    const int64_t whole = d / LANES * LANES;
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) {
        vec totals[LANES] = {};
        for (int64_t i = 0; i < whole; i += LANES) {
            vec part = load(query + i);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) totals[k] += part * load(keys + (j + k) * d + i);
        }
        store(scores + j, sums(totals) * scale);
    }
    for (; j < count; j++) {
        vec total{};
        for (int64_t i = 0; i < whole; i += LANES) total += load(query + i) * load(keys + j * d + i);
        scores[j] = sum(total) * scale;
    }
    if (whole == d) return;
    for (j = 0; j < count; j++)
        for (int64_t i = whole; i < d; i++) scores[j] += query[i] * keys[j * d + i] * scale;
}

// VECTORS vectors of some heads' weighted sums of values that lie d after one another.
template <int HEADS, int VECTORS>
void mix(const float *weights, int64_t stride, const float *values, int64_t count, int64_t d, float *mixed) {
    vec sums[HEADS][VECTORS] = {};
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            vec value = load(values + j * d + v * LANES);
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; h++) sums[h][v] += weights[h * stride + j] * value;
        }
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VECTORS; v++) store(mixed + h * rounded(d) + v * LANES, sums[h][v]);
}

// One token's attention: HEADS of its queries, rotated, on the keys and values that they share. `memory`: for the scores
// and the mixed values of each head.
template <int HEADS, typename T>
void attend(const float *queries, const float *keys, const float *values, int64_t seen, int64_t d, float *memory, T *out) {
    const int64_t line = rounded(d), stride = rounded(seen);
    float *scores = memory, *mixed = memory + HEADS * stride, inverse[HEADS];
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    for (int h = 0; h < HEADS; h++) {
        float *own = scores + h * stride;
        score(queries + h * line, keys, seen, d, scale, own);
        std::fill(own + seen, own + stride, -INFINITY);
        vec most = load(own), total{};
        for (int64_t j = LANES; j < stride; j += LANES) most = larger(most, load(own + j));
        const float top = largest(most);
        for (int64_t j = 0; j < stride; j += LANES) {
            vec weight = exponential(load(own + j) - top);
            total += weight;
            store(own + j, weight);
        }
        inverse[h] = 1.0f / sum(total);
    }
    int64_t i = 0;
    for (; i + 4 * LANES <= d; i += 4 * LANES) mix<HEADS, 4>(scores, stride, values + i, seen, d, mixed + i);
    for (; i + LANES <= d; i += LANES) mix<HEADS, 1>(scores, stride, values + i, seen, d, mixed + i);
    for (; i < d; i++)
        for (int h = 0; h < HEADS; h++) {
            float total = 0.0f;
            for (int64_t j = 0; j < seen; j++) total += scores[h * stride + j] * values[j * d + i];
            mixed[h * line + i] = total;
        }
    for (int h = 0; h < HEADS; h++)
        for (i = 0; i < d; i++) put(out + h * d + i, mixed[h * line + i] * inverse[h]);
}

template <int HEADS, typename T>
void attend_of(int64_t heads, const float *queries, const float *keys, const float *values, int64_t seen, int64_t d,
               float *memory, T *out) {
    if (heads == HEADS)
        attend<HEADS>(queries, keys, values, seen, d, memory, out);
    else if constexpr (HEADS > 1)
        attend_of<HEADS - 1>(heads, queries, keys, values, seen, d, memory, out);
}

static inline float *widened(float *cache, int64_t, float *) { return cache; }
static inline float *widened(const bf16 *cache, int64_t count, float *memory) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(memory + i, load(cache + i));
    for (; i < count; i++) memory[i] = get(cache + i);
    return memory;
}

template <typename T>
void decode(const T *qkv, const int64_t *offsets, const float *rotations, const T *q_norm, const T *k_norm, float eps,
            const int64_t *padding, T *keys, T *values, int64_t rows, int64_t heads, int64_t kv_heads, int64_t d,
            int64_t width, int64_t column, int64_t window, T *out) {
    constexpr int SHARING = 4;  // query heads that read a value together
    const int64_t group = heads / kv_heads, all = heads + 2 * kv_heads, line = rounded(d);
#pragma omp parallel for schedule(static)
    for (int64_t unit = 0; unit < rows * kv_heads; unit++) {
        const int64_t row = unit / kv_heads, shared = unit % kv_heads;
        const int64_t first = offsets ? offsets[row] : row, end = offsets ? offsets[row + 1] : row + 1;
        // What any of the new tokens sees, and the new tokens; in float32.
        const int64_t lowest = std::max(padding[row], lowest_seen(column, window));
        const int64_t columns = column - lowest + end - first, wide = std::is_same<T, float>::value ? 0 : columns * d;
        T *row_keys = keys + (unit * width + lowest) * d, *row_values = values + (unit * width + lowest) * d;
        float *queries = scratch.take(SHARING * (2 * line + rounded(columns)) + 2 * wide);
        float *memory = queries + SHARING * line, *wide_keys = memory + SHARING * (line + rounded(columns));
        float *all_keys = widened(row_keys, (column - lowest) * d, wide_keys);
        float *all_values = widened(row_values, (column - lowest) * d, wide_keys + wide);
        for (int64_t token = first; token < end; token++) {
            const T *own = qkv + token * all * d, *value = own + (heads + kv_heads + shared) * d;
            const int64_t position = column + token - first - padding[row], place = column + token - first - lowest;
            const int64_t low = std::max<int64_t>(lowest_seen(column + token - first, window) - lowest, 0);
            auto turned = [&](int64_t head, const T *norm, float *x) {
                for (int64_t i = 0; i < d; i++) x[i] = get(own + head * d + i);
                if (norm) norm_head(x, norm, d, eps);
                rotate_pairs(x, rotations + position * d, d);
            };
            turned(heads + shared, k_norm, queries);
            for (int64_t i = 0; i < d; i++) {
                put(row_keys + place * d + i, queries[i]);
                put(row_values + place * d + i, get(value + i));
                all_keys[place * d + i] = get(row_keys + place * d + i);
                all_values[place * d + i] = get(row_values + place * d + i);
            }
            for (int64_t g = 0; g < group; g += SHARING) {
                const int64_t head = shared * group + g, count = std::min<int64_t>(SHARING, group - g);
                for (int64_t h = 0; h < count; h++) turned(head + h, q_norm, queries + h * line);
                attend_of<SHARING>(count, queries, all_keys + low * d, all_values + low * d, place + 1 - low, d, memory,
                                   out + (token * heads + head) * d);
            }
        }
    }
}

}  // namespace

extern "C" {

// Queries, keys and values of whole rows in float32, the first two rotated to their positions (N); out may be qkv.
// qkv and out (N, H + 2R, d); rotations (P, d / 2, 2) cosine and sine; q_norm and k_norm (d) or null.
void rotate_pairs_f32(const float *qkv, const float *rotations, const int64_t *positions, const float *q_norm,
                      const float *k_norm, float eps, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t d,
                      float *out) {
    rotate(qkv, rotations, positions, q_norm, k_norm, eps, tokens, heads, kv_heads, d, out);
}

void rotate_pairs_bf16(const bf16 *qkv, const float *rotations, const int64_t *positions, const bf16 *q_norm,
                       const bf16 *k_norm, float eps, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t d,
                       float *out) {
    rotate(qkv, rotations, positions, q_norm, k_norm, eps, tokens, heads, kv_heads, d, out);
}

// New tokens of every row: rotates each, stores its key and value in the cache, from ``column`` on, and attends to all
// up to itself. qkv (N, H + 2R, d) with the tokens of row b from offsets[b] to offsets[b + 1] (B + 1; null is one token
// a row); rotations (P, d / 2, 2) cosine and sine; q_norm and k_norm (d) or null; padding (B): columns before a row's
// first token; keys and values (B, R, W, d), in the format of qkv; out (N, H, d).
void decode_attention_f32(const float *qkv, const int64_t *offsets, const float *rotations, const float *q_norm,
                          const float *k_norm, float eps, const int64_t *padding, float *keys, float *values,
                          int64_t rows, int64_t heads, int64_t kv_heads, int64_t d, int64_t width, int64_t column,
                          int64_t window, float *out) {
    decode(qkv, offsets, rotations, q_norm, k_norm, eps, padding, keys, values, rows, heads, kv_heads, d, width, column,
           window, out);
}

void decode_attention_bf16(const bf16 *qkv, const int64_t *offsets, const float *rotations, const bf16 *q_norm,
                           const bf16 *k_norm, float eps, const int64_t *padding, bf16 *keys, bf16 *values,
                           int64_t rows, int64_t heads, int64_t kv_heads, int64_t d, int64_t width, int64_t column,
                           int64_t window, bf16 *out) {
    decode(qkv, offsets, rotations, q_norm, k_norm, eps, padding, keys, values, rows, heads, kv_heads, d, width, column,
           window, out);
}

}  // extern "C"

// What a layer does to each token by itself: norms, gated activations, rotary positions.
//
// Arrays are C-contiguous unless a stride (elements from one token to the next) is given. Work is shared by
// OpenMP threads in a fixed order, so that the same inputs give the same bits on the same number of threads.
// Axes: N tokens, D width, I inner width, H heads, d width of a head.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t SMALL = 16384;  // elements below which starting threads costs more than it gives

template <typename T>
float square_sum(const T *x, int64_t width) {
    vec a{}, b{};
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        vec x0 = load(x + i), x1 = load(x + i + LANES);
        a += x0 * x0;
        b += x1 * x1;
    }
    float total = sum(a + b);
    for (; i < width; i++) total += get(x + i) * get(x + i);
    return total;
}

template <typename T>
void norm_row(const T *x, const T *weight, T *out, float scale, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < width; i++) put(out + i, get(x + i) * scale * get(weight + i));
}

template <typename T>
void norm(const T *x, const T *weight, T *out, float *scales, int64_t tokens, int64_t width, float eps) {
#pragma omp parallel for schedule(static) if (tokens * width > SMALL)
    for (int64_t n = 0; n < tokens; n++) {
        float scale = 1.0f / std::sqrt(square_sum(x + n * width, width) / width + eps);
        if (scales) scales[n] = scale;
        norm_row(x + n * width, weight, out + n * width, scale, width);
    }
}

template <typename T>
void silu_times(const T *gate, const T *up, T *out, int64_t count) {
#pragma omp parallel for schedule(static) if (count > SMALL)
    for (int64_t block = 0; block < (count + SMALL - 1) / SMALL; block++) {
        int64_t i = block * SMALL, end = std::min(count, i + SMALL);
        for (; i + LANES <= end; i += LANES) {
            vec g = load(gate + i);
            store(out + i, g * logistic(g) * load(up + i));
        }
        for (; i < end; i++) {
            float g = get(gate + i);
            put(out + i, g / (1.0f + exponential(-g)) * get(up + i));
        }
    }
}

}  // namespace

extern "C" {

// out = x * scale * weight, scale = 1 / sqrt(mean(x^2) + eps) a token; scales (N) are written where not null.
void norm_f32(const float *x, const float *weight, float *out, float *scales, int64_t tokens, int64_t width,
              float eps) {
    norm(x, weight, out, scales, tokens, width, eps);
}

void norm_bf16(const bf16 *x, const bf16 *weight, bf16 *out, float *scales, int64_t tokens, int64_t width,
               float eps) {
    norm(x, weight, out, scales, tokens, width, eps);
}

// Of the norm above: the gradient by x (N, D) from that by the output, and the gradient by the weight (D).
void norm_backward_f32(const float *x, const float *scales, const float *weight, const float *grad, float *by_x,
                       float *by_weight, int64_t tokens, int64_t width) {
    int threads = tokens * width > SMALL ? omp_get_max_threads() : 1;
    std::vector<float> partial(static_cast<size_t>(threads) * width, 0.0f);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < threads; part++) {
        float *own = partial.data() + part * width;
        for (int64_t n = tokens * part / threads; n < tokens * (part + 1) / threads; n++) {
            const float *xn = x + n * width, *gn = grad + n * width;
            float *out = by_x + n * width, scale = scales[n];
            vec dot{};
            float rest = 0.0f;
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) {
                vec straight = load(xn + i) * scale, product = load(gn + i) * straight;
                store(own + i, load(own + i) + product);
                dot += product * load(weight + i);
            }
            for (; i < width; i++) {
                float product = gn[i] * xn[i] * scale;
                own[i] += product;
                rest += product * weight[i];
            }
            // With y = straight * weight: dx = scale * (dy weight - straight * mean(dy weight straight)).
            float mean = (sum(dot) + rest) / width;
            for (i = 0; i + LANES <= width; i += LANES) {
                vec straight = load(xn + i) * scale;
                store(out + i, (load(gn + i) * load(weight + i) - straight * mean) * scale);
            }
            for (; i < width; i++) out[i] = (gn[i] * weight[i] - xn[i] * scale * mean) * scale;
        }
    }
    std::copy(partial.begin(), partial.begin() + width, by_weight);
    for (int part = 1; part < threads; part++)
        for (int64_t i = 0; i < width; i++) by_weight[i] += partial[part * width + i];
}

// out = silu(gate) * up; out may be either input.
void silu_times_f32(const float *gate, const float *up, float *out, int64_t count) { silu_times(gate, up, out, count); }
void silu_times_bf16(const bf16 *gate, const bf16 *up, bf16 *out, int64_t count) { silu_times(gate, up, out, count); }

// From the gradient by silu(gate) * up: overwrites gate and up by the gradients by them, and grad by the product.
void silu_times_backward_f32(float *gate, float *up, float *grad, int64_t count) {
#pragma omp parallel for schedule(static) if (count > SMALL)
    for (int64_t block = 0; block < (count + SMALL - 1) / SMALL; block++) {
        int64_t i = block * SMALL, end = std::min(count, i + SMALL);
        for (; i + LANES <= end; i += LANES) {
            vec g = load(gate + i), u = load(up + i), dy = load(grad + i), s = logistic(g), open = g * s;
            store(gate + i, dy * u * s * (1.0f + g * (1.0f - s)));
            store(up + i, dy * open);
            store(grad + i, open * u);
        }
        for (; i < end; i++) {
            float g = gate[i], u = up[i], dy = grad[i], s = 1.0f / (1.0f + exponential(-g)), open = g * s;
            gate[i] = dy * u * s * (1.0f + g * (1.0f - s));
            up[i] = dy * open;
            grad[i] = open * u;
        }
    }
}

// Rotates the pair (i, i + d/2) of each head by the angle whose cosine and sine stand at i of the token's row
// (N, d), in place; sign -1 turns back. x: H heads of d numbers a token, stride elements from token to token.
void rotate_halves_f32(float *x, const float *cosine, const float *sine, int64_t tokens, int64_t heads, int64_t d,
                       int64_t stride, float sign) {
    int64_t half = d / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * d > SMALL)
    for (int64_t n = 0; n < tokens; n++) {
        const float *c = cosine + n * d, *s = sine + n * d;
        for (int64_t h = 0; h < heads; h++) {
            float *a = x + n * stride + h * d, *b = a + half;
            int64_t i = 0;
            for (; i + LANES <= half; i += LANES) {
                vec x0 = load(a + i), x1 = load(b + i), c0 = load(c + i), s0 = load(s + i) * sign;
                store(a + i, x0 * c0 - x1 * s0);
                store(b + i, x1 * c0 + x0 * s0);
            }
            for (; i < half; i++) {
                float x0 = a[i], x1 = b[i], s0 = s[i] * sign;
                a[i] = x0 * c[i] - x1 * s0;
                b[i] = x1 * c[i] + x0 * s0;
            }
        }
    }
}

}  // extern "C"

// What is done to the logits of single tokens, over the whole vocabulary: losses with their gradients,
// log-probabilities, drawing.
//
// Every row is read while it is in the cache. Exponentials are taken of the distance from the row's largest logit,
// so that nothing overflows; sums run in float32 within blocks of the vocabulary and in float64 over them.
// Axes: R rows (tokens), V vocabulary.
#include <omp.h>

#include <algorithm>

#include "simd.h"

namespace {

constexpr int64_t BLOCK = 256;

template <typename T>
float row_largest(const T *z, int64_t width) {
    float most = -INFINITY;
    int64_t v = 0;
    if (width >= LANES) {
        vec top = load(z);
        for (v = LANES; v + LANES <= width; v += LANES) top = larger(top, load(z + v));
        most = largest(top);
    }
    for (; v < width; v++) most = std::max(most, get(z + v));
    return most;
}

// Sum of exp((z - most) / temperature) over some logits.
template <typename T>
float mass(const T *z, int64_t count, float most, float inverse) {
    vec total{};
    int64_t v = 0;
    for (; v + LANES <= count; v += LANES) total += exponential((load(z + v) - most) * inverse);
    float result = sum(total);
    for (; v < count; v++) result += exponential((get(z + v) - most) * inverse);
    return result;
}

template <typename T>
void draw_row(const T *z, int64_t width, double uniform, float inverse, double *upto, int64_t *token, float *logp) {
    const float most = row_largest(z, width);
    const int64_t blocks = (width + BLOCK - 1) / BLOCK;
    double total = 0.0;
    for (int64_t b = 0; b < blocks; b++) {
        total += mass(z + b * BLOCK, std::min(BLOCK, width - b * BLOCK), most, inverse);
        upto[b] = total;
    }
    // Not a number anywhere: some token, whose log-probability says so.
    if (!(total > 0.0) || !std::isfinite(total)) {
        *token = 0;
        *logp = NAN;
        return;
    }
    const double target = std::min(uniform, 1.0 - 0x1p-52) * total;
    int64_t b = std::upper_bound(upto, upto + blocks, target) - upto;
    b = std::min(b, blocks - 1);
    const double before = b > 0 ? upto[b - 1] : 0.0;
    // The first entry at which the sum passes the target; the last one with any mass where rounding is in the way.
    double passed = before;
    int64_t chosen = -1;
    for (int64_t v = b * BLOCK; v < std::min(width, (b + 1) * BLOCK); v++) {
        const float weight = exponential((get(z + v) - most) * inverse);
        if (weight > 0.0f) chosen = v;
        passed += weight;
        if (weight > 0.0f && passed > target) break;
    }
    *token = chosen;
    *logp = (get(z + chosen) - most) * inverse - static_cast<float>(std::log(total));
}

template <typename T>
void draw_rows(const T *logits, int64_t stride, const double *uniform, int64_t rows, int64_t width, float temperature,
               double *scratch, int64_t *tokens, float *logp) {
    const int64_t blocks = (width + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        draw_row(logits + r * stride, width, uniform[r], 1.0f / temperature, scratch + r * blocks, tokens + r, logp + r);
}

template <typename T>
void logp_rows(const T *logits, int64_t stride, const int64_t *tokens, int64_t rows, int64_t width, float temperature,
               float *logp) {
    const float inverse = 1.0f / temperature;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const T *z = logits + r * stride;
        const float most = row_largest(z, width);
        double total = 0.0;
        for (int64_t v = 0; v < width; v += BLOCK) total += mass(z + v, std::min(BLOCK, width - v), most, inverse);
        logp[r] = (get(z + tokens[r]) - most) * inverse - static_cast<float>(std::log(total));
    }
}

constexpr int64_t PIECE = 2048;  // of a row, summed in float32

}  // namespace

extern "C" {

// One token for each row by inversion of the cumulative distribution of softmax(logits / temperature) at uniform (R),
// and its log-probability. stride: elements from row to row. scratch: R * ceil(V / 256) numbers.
void draw_f32(const float *logits, int64_t stride, const double *uniform, int64_t rows, int64_t width,
              float temperature, double *scratch, int64_t *tokens, float *logp) {
    draw_rows(logits, stride, uniform, rows, width, temperature, scratch, tokens, logp);
}

void draw_bf16(const bf16 *logits, int64_t stride, const double *uniform, int64_t rows, int64_t width,
               float temperature, double *scratch, int64_t *tokens, float *logp) {
    draw_rows(logits, stride, uniform, rows, width, temperature, scratch, tokens, logp);
}

// Log-probability of the given token of each row under softmax(logits / temperature).
void logp_f32(const float *logits, int64_t stride, const int64_t *tokens, int64_t rows, int64_t width,
              float temperature, float *logp) {
    logp_rows(logits, stride, tokens, rows, width, temperature, logp);
}

void logp_bf16(const bf16 *logits, int64_t stride, const int64_t *tokens, int64_t rows, int64_t width,
               float temperature, float *logp) {
    logp_rows(logits, stride, tokens, rows, width, temperature, logp);
}

// Sums of each row that losses are made of, seven numbers a row, with a = student / T - its maximum, likewise b of the
// teacher (null: no teacher), q = softmax(a) and p = softmax(b): maximum of the student, log(sum exp a), sum(q a),
// maximum of the teacher, log(sum exp b), sum(q (a - b)), sum(p (b - a)).
void loss_sums_f32(const float *student, const float *teacher, int64_t rows, int64_t width, float temperature,
                   float *sums) {
    const float inverse = 1.0f / temperature;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = student + r * width, *y = teacher ? teacher + r * width : nullptr;
        const float top = row_largest(x, width) * inverse, peak = y ? row_largest(y, width) * inverse : 0.0f;
        double mass_q = 0.0, mass_p = 0.0, own = 0.0, reverse = 0.0, forward = 0.0;
        for (int64_t piece = 0; piece < width; piece += PIECE) {
            const int64_t end = std::min(width, piece + PIECE);
            vec s_q{}, s_p{}, s_own{}, s_reverse{}, s_forward{};
            int64_t v = piece;
            for (; v + LANES <= end; v += LANES) {
                vec a = load(x + v) * inverse - top, e = exponential(a);
                s_q += e;
                // An impossible token counts nothing: zero times minus infinity.
                s_own += e > 0.0f ? e * a : vec{};
                if (y) {
                    vec b = load(y + v) * inverse - peak, f = exponential(b);
                    s_p += f;
                    s_reverse += e > 0.0f ? e * (a - b) : vec{};
                    s_forward += f > 0.0f ? f * (b - a) : vec{};
                }
            }
            mass_q += sum(s_q), mass_p += sum(s_p), own += sum(s_own);
            reverse += sum(s_reverse), forward += sum(s_forward);
            for (; v < end; v++) {
                const float a = x[v] * inverse - top, e = exponential(a);
                mass_q += e;
                if (e > 0.0f) own += e * a;
                if (y) {
                    const float b = y[v] * inverse - peak, f = exponential(b);
                    mass_p += f;
                    if (e > 0.0f) reverse += e * (a - b);
                    if (f > 0.0f) forward += f * (b - a);
                }
            }
        }
        float *out = sums + r * 7;
        out[0] = top, out[1] = std::log(mass_q), out[2] = own / mass_q;
        out[3] = peak, out[4] = y ? std::log(mass_p) : 0.0, out[5] = y ? reverse / mass_q : 0.0;
        out[6] = y ? forward / mass_p : 0.0;
    }
}

// The gradient by the student's logits, written over them: per_token times q, plus by_reverse times the gradient of
// KL(q || p), plus by_forward times that of KL(p || q); the factors (R) hold everything but 1 / T.
void loss_gradient_f32(float *student, const float *teacher, int64_t rows, int64_t width, float temperature,
                       const float *sums, const float *per_token, const float *by_reverse, const float *by_forward) {
    const float inverse = 1.0f / temperature;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *x = student + r * width;
        const float *y = teacher ? teacher + r * width : nullptr, *row = sums + r * 7;
        const float scale_q = std::exp(-row[1]) * inverse, scale_p = std::exp(-row[4]) * inverse * by_forward[r];
        const float top = row[0], peak = row[3], plain = per_token[r] + by_forward[r], factor = by_reverse[r];
        const float constant = plain - factor * row[5];
        int64_t v = 0;
        const bool forward = y && by_forward[r] != 0.0f, reverse = y && factor != 0.0f;
        for (; v + LANES <= width; v += LANES) {
            vec a = load(x + v) * inverse - top, e = exponential(a) * scale_q, g = e * constant;
            if (y) {
                vec b = load(y + v) * inverse - peak;
                if (reverse) g += e > 0.0f ? e * (a - b) * factor : vec{};
                if (forward) g -= exponential(b) * scale_p;
            }
            store(x + v, g);
        }
        for (; v < width; v++) {
            const float a = x[v] * inverse - top, e = exponential(a) * scale_q;
            float g = e * constant;
            if (y) {
                const float b = y[v] * inverse - peak;
                if (reverse && e > 0.0f) g += e * (a - b) * factor;
                if (forward) g -= exponential(b) * scale_p;
            }
            x[v] = g;
        }
    }
}

}  // extern "C"

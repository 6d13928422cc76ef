// Vectors of the processor's width, through the compiler's own vector types: no intrinsics (but to round to bfloat16,
// where there is an instruction for it), so that the same text serves AVX2, AVX-512 and anything else that g++ knows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

// x - 0 is x whatever its sign, so nothing is left to compute; 0 + x would be an addition.
static inline vec splat(float x) { return x - vec{}; }
static inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
static inline void store(float *p, vec x) { *reinterpret_cast<vec *>(p) = x; }
static inline vec larger(vec a, vec b) { return a > b ? a : b; }

// By halves: additions one after the other would wait for each other.
static inline float sum(vec x) {
    typedef float quarter __attribute__((vector_size(16)));
    quarter parts[LANES / 4];
    std::memcpy(parts, &x, sizeof x);
    for (int width = LANES / 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// Of pairs of vectors, in blocks of 2 * WIDTH lanes: the sums of each one's two halves, those of a before those of b.
template <int WIDTH>
static inline vec sums_of_halves(vec a, vec b) {
    ivec low, high;
    for (int i = 0; i < LANES; i++) {
        int block = i / (2 * WIDTH) * (2 * WIDTH), rest = i % (2 * WIDTH);
        low[i] = block + (rest < WIDTH ? rest : LANES + rest - WIDTH);
        high[i] = low[i] + WIDTH;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// The sums of LANES vectors, in their order; what is in them is lost.
template <int WIDTH = LANES / 2>
static inline vec sums(vec *x) {
    for (int i = 0; i < WIDTH; i++) x[i] = sums_of_halves<WIDTH>(x[i], x[i + WIDTH]);
    if constexpr (WIDTH > 1)
        return sums<WIDTH / 2>(x);
    else
        return x[0];
}

static inline float largest(vec x) {
    float m = x[0];
    for (int i = 1; i < LANES; i++) m = x[i] > m ? x[i] : m;
    return m;
}

// bfloat16 is the upper half of a float32; rounding is to the nearest, ties to even. Where the processor rounds, it makes
// zeros of what is smaller than the smallest normal number.
struct bf16 {
    uint16_t bits;
};

static inline vec load(const bf16 *p) {
    uvec wide = __builtin_convertvector(*reinterpret_cast<const hvec *>(p), uvec) << 16;
    vec x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

static inline void store(bf16 *p, vec x) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(p, &half, sizeof half);
#else
    uvec bits;
    std::memcpy(&bits, &x, sizeof bits);
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    ivec nan = x != x;
    rounded = nan ? (uvec{} + 0x7fc0) : rounded;
    *reinterpret_cast<hvec *>(p) = __builtin_convertvector(rounded, hvec);
#endif
}

static inline float get(const float *p) { return *p; }
static inline void put(float *p, float x) { *p = x; }

static inline float get(const bf16 *p) {
    uint32_t wide = static_cast<uint32_t>(p->bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

static inline void put(bf16 *p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp(x) to about two units in the last place: 2^n times a polynomial in the rest, |rest| <= ln(2) / 2.
// Below the smallest normal number it is 0; not a number stays one.
static inline vec exponential(vec x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    vec clipped = x > 88.7f ? splat(88.7f) : x;
    clipped = clipped < -87.3f ? splat(-87.3f) : clipped;
    vec rounded = clipped * 1.44269504088896341f + shift;
    vec n = rounded - shift;
    vec r = clipped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    vec result = p * scale;
    result = x < -87.3f ? splat(0.0f) : result;
    return x != x ? x : result;
}

static inline float exponential(float x) { return exponential(splat(x))[0]; }

// x / (1 + exp(-x)) needs the logistic function in both directions.
static inline vec logistic(vec x) { return 1.0f / (1.0f + exponential(-x)); }

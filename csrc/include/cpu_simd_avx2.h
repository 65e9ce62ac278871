// Eight lanes: AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "cpu_formats.h"

namespace kt::avx2 {

#define KT_TARGET __attribute__((target("avx2,fma,f16c")))
#define KT_INLINE KT_TARGET inline __attribute__((always_inline))

typedef __m256 Vec;
constexpr int LANES = 8, ROWS = 3, COLUMNS = 4, FEW = 1;

KT_INLINE Vec zero() { return _mm256_setzero_ps(); }
KT_INLINE Vec load(const float* from) { return _mm256_load_ps(from); }
KT_INLINE void store(float* to, Vec v) { _mm256_store_ps(to, v); }
KT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
KT_INLINE float sum(Vec v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

constexpr int STEP = 2 * LANES;  // codes that are widened at once
// A code moved to the exponent and mantissa of an f16 is its value times 2^-8, subnormals included.
constexpr float UNIT = 256.0f;

struct Wide {
    Vec part[STEP / LANES];
};

KT_INLINE Vec all(float value) { return _mm256_set1_ps(value); }

// values of STEP codes / UNIT
KT_INLINE Wide widen_step(const uint8_t* from) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m256i magnitudes = _mm256_set1_epi16(0x3f80);
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(shifted, magnitudes), magnitudes);
    const __m256i half = _mm256_or_si256(_mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xbf80))), nan);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    return Wide{{low, high}};
}

// to[i] = float32(value of codes[i] * scale); any alignment, any count
KT_INLINE void widen(const uint8_t* codes, int count, float scale, float* to) {
    const int whole = usable(scale * UNIT, UNIT) ? count - count % STEP : 0;
    const Vec units = all(scale * UNIT);
    for (int i = 0; i < whole; i += STEP) {
        const Wide values = widen_step(codes + i);
        _mm256_storeu_ps(to + i, values.part[0] * units);
        _mm256_storeu_ps(to + i + LANES, values.part[1] * units);
    }
    for (int i = whole; i < count; ++i) to[i] = E4M3.value[codes[i]] * scale;
}

}  // namespace kt::avx2

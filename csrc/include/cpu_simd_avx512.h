// Sixteen lanes: AVX-512 F, BW and VL, which every x86-64-v4 chip has.
#pragma once

#include <immintrin.h>

#include "cpu_formats.h"

namespace kt::avx512 {

#define KT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define KT_INLINE KT_TARGET inline __attribute__((always_inline))

typedef __m512 Vec;
constexpr int LANES = 16, ROWS = 4, COLUMNS = 6, FEW = 8;

KT_INLINE Vec zero() { return _mm512_setzero_ps(); }
KT_INLINE Vec load(const float* from) { return _mm512_load_ps(from); }
KT_INLINE void store(float* to, Vec v) { _mm512_store_ps(to, v); }
KT_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
KT_INLINE float sum(Vec v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

constexpr int STEP = 2 * LANES;  // codes that are widened at once
// A code moved to the exponent and mantissa of an f16 is its value times 2^-8, subnormals included.
constexpr float UNIT = 256.0f;

struct Wide {
    Vec part[STEP / LANES];
};

KT_INLINE Vec all(float value) { return _mm512_set1_ps(value); }

// values of STEP codes / UNIT
KT_INLINE Wide widen_step(const uint8_t* from) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m512i magnitudes = _mm512_set1_epi16(0x3f80);
    const __m512i shifted = _mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_and_si512(shifted, magnitudes), magnitudes);
    const __m512i value = _mm512_and_si512(shifted, _mm512_set1_epi16(static_cast<short>(0xbf80)));
    const __m512i half = _mm512_mask_blend_epi16(nan, value, _mm512_set1_epi16(0x7e00));
    const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
    return Wide{{low, high}};
}

// to[i] = float32(value of codes[i] * scale); any alignment, any count
KT_INLINE void widen(const uint8_t* codes, int count, float scale, float* to) {
    const int whole = usable(scale * UNIT, UNIT) ? count - count % STEP : 0;
    const Vec units = all(scale * UNIT);
    for (int i = 0; i < whole; i += STEP) {
        const Wide values = widen_step(codes + i);
        _mm512_storeu_ps(to + i, values.part[0] * units);
        _mm512_storeu_ps(to + i + LANES, values.part[1] * units);
    }
    for (int i = whole; i < count; ++i) to[i] = E4M3.value[codes[i]] * scale;
}

}  // namespace kt::avx512

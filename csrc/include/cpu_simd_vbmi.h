// Sixteen lanes with byte look-ups (AVX-512 VBMI): 64 codes are widened at once. Every bit is that of plain AVX-512.
#pragma once

#include "cpu_simd_avx512.h"

namespace kt::vbmi {

#define KT_TARGET __attribute__((target("avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define KT_INLINE KT_TARGET inline __attribute__((always_inline))

using avx512::all, avx512::COLUMNS, avx512::FEW, avx512::LANES, avx512::load, avx512::multiply_add, avx512::ROWS;
using avx512::store, avx512::sum, avx512::Vec, avx512::zero;

constexpr int STEP = 4 * LANES;
constexpr float UNIT = 1.0f;

struct Wide {
    Vec part[STEP / LANES];
};

// The two bytes of bf16 that hold the value of each magnitude (code without its sign), and the order in which codes are
// looked up so that interleaving the bytes puts the columns of one vector into every second half of its lanes.
struct Tables {
    alignas(64) uint8_t low[128], high[128], order[64];
    constexpr Tables() : low(), high(), order() {
        for (unsigned code = 0; code < 128; ++code) {
            low[code] = static_cast<uint8_t>(e4m3_as_bf16(code));
            high[code] = static_cast<uint8_t>(e4m3_as_bf16(code) >> 8);
        }
        for (int i = 0; i < STEP; ++i) order[i] = (i / 8 % 2 * 2 + i % 2) * LANES + i / 16 * 4 + i / 2 % 4;
    }
};
inline constexpr Tables TABLES{};

KT_INLINE __m512i bytes(const uint8_t* from) { return _mm512_load_si512(from); }

// values of STEP codes
KT_INLINE Wide widen_step(const uint8_t* from) {
    const __m512i codes = _mm512_permutexvar_epi8(bytes(TABLES.order), _mm512_loadu_si512(from));
    const __m512i low = _mm512_permutex2var_epi8(bytes(TABLES.low), codes, bytes(TABLES.low + 64));
    const __m512i size = _mm512_permutex2var_epi8(bytes(TABLES.high), codes, bytes(TABLES.high + 64));
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80)), odd = _mm512_set1_epi32(~0xffff);
    const __m512i high = _mm512_ternarylogic_epi32(size, codes, sign, 0xf8);  // size | (codes & sign)
    const __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    const __m512i halves[] = {_mm512_slli_epi32(first, 16), first & odd, _mm512_slli_epi32(second, 16), second & odd};
    return Wide{{_mm512_castsi512_ps(halves[0]), _mm512_castsi512_ps(halves[1]), _mm512_castsi512_ps(halves[2]),
                 _mm512_castsi512_ps(halves[3])}};
}

// to[i] = float32(value of codes[i] * scale); any alignment, any count
KT_INLINE void widen(const uint8_t* codes, int count, float scale, float* to) {
    const int whole = count - count % STEP;
    for (int i = 0; i < whole; i += STEP) {
        const Wide values = widen_step(codes + i);
#pragma GCC unroll 4
        for (int p = 0; p < STEP / LANES; ++p) _mm512_storeu_ps(to + i + p * LANES, values.part[p] * all(scale));
    }
    if (whole < count) avx512::widen(codes + whole, count - whole, scale, to + whole);
}

}  // namespace kt::vbmi

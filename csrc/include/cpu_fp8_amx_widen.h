// Weights of the product in tiles (AMX), widened to bf16, exactly.
#pragma once

#include "cpu_fp8_amx_pack.h"

namespace kt::amx {

constexpr int64_t HIGH = 2 * EDGE;        // rows of the weight that are multiplied at a time
constexpr int64_t CUT = 256;              // columns of k that are widened at a time, a multiple of SPAN
constexpr int64_t WIDE = HIGH * CUT / 2;  // floats that widened weights take
constexpr int64_t LATER = 1;              // cuts between what is fetched and what is widened

// Where the tile begins that holds rows h * EDGE + [0, EDGE) of widened weights, and REACH columns from `column` on, in the
// order of widening.
inline uint16_t* wide_tile(uint16_t* wide, int64_t h, int64_t column) {
    return wide + (h * (CUT / REACH) + column / REACH) * PAIRS;
}

// 64 codes as bf16: two vectors, of columns 0-7, 16-23, 32-39, 48-55 and of the others.
struct Halves {
    __m512i part[2];
};

KT_INLINE Halves widen_step(__m512i codes) {
    const uint8_t *const lows = vbmi::TABLES.low, *const highs = vbmi::TABLES.high;
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(lows), codes, _mm512_load_si512(lows + 64));
    const __m512i size = _mm512_permutex2var_epi8(_mm512_load_si512(highs), codes, _mm512_load_si512(highs + 64));
    const __m512i high = _mm512_ternarylogic_epi32(size, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    return {{_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)}};
}

// Each number times a power of two, given as what it adds to the exponent in place; 0 and NaN stay.
KT_INLINE __m512i times(__m512i half, __m512i power) {
    const __m512i size = _mm512_sub_epi16(_mm512_add_epi16(half, half), _mm512_set1_epi16(1));
    const __mmask32 number = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(static_cast<short>(0xff7f)));
    return _mm512_mask_add_epi16(half, number, half, power);
}

// What up to 16 e8m0 scales add to the exponents of bf16. Clears good if one is none that is folded.
KT_INLINE __m512i powers(const uint8_t* scales, int64_t count, bool& good) {
    const __mmask16 given = static_cast<__mmask16>((1u << count) - 1);
    const __m128i codes = _mm_maskz_loadu_epi8(given, scales);
    const __m128i above = _mm_sub_epi8(codes, _mm_set1_epi8(127 - FOLDED));
    good &= _mm_mask_cmpgt_epu8_mask(given, above, _mm_set1_epi8(2 * FOLDED)) == 0;
    const __m256i words = _mm256_sub_epi16(_mm256_cvtepu8_epi16(codes), _mm256_set1_epi16(127));
    return _mm512_castsi256_si512(_mm256_slli_epi16(words, 7));
}

// HIGH rows of the weight from `column` on, CUT columns of k from `start` on or what there is: they are widened a few
// rows at a time, while others are multiplied. Meanwhile codes of a later cut are fetched, as add_columns does.
struct Cut {
    int64_t column, start;
    uint16_t* wide;                     // what they become, up to a whole step with zeros
    int64_t later_column, later_start;  // of the cut whose codes are fetched
    int64_t done = 0;                   // rows
    bool good = true;                   // false once scales of one cannot be folded
};

template <bool FOLD>
KT_TARGET inline void widen_rows(const kt_fp8_job& job, Cut& cut, int64_t rows) {
    const int64_t count = smaller(CUT, job.k - cut.start);
    const auto scales_of = [&](int64_t n, int64_t start) {
        const int64_t row = job.block_n == 1 ? n : n / job.block_n;
        return static_cast<const uint8_t*>(job.scale) + row * job.scale_stride + start / REACH;
    };
    for (const int64_t end = smaller(HIGH, cut.done + rows); cut.done < end; ++cut.done) {
        const int64_t n = cut.column + cut.done;
        const uint8_t* const codes = job.weight + n * job.weight_stride + cut.start;
        const uint8_t* const later = job.weight + (cut.later_column + cut.done) * job.weight_stride + cut.later_start;
        uint16_t* const to = wide_tile(cut.wide, cut.done / EDGE, 0) + cut.done % EDGE * REACH;
        __m512i power = _mm512_setzero_si512(), which = _mm512_maskz_set1_epi16(0xffff0000u, 1);  // of two blocks of a step
        if (FOLD && n < job.n) {
            __builtin_prefetch(scales_of(cut.later_column + cut.done, cut.later_start), 0, 2);
            power = powers(scales_of(n, cut.start), ceil_div(count, REACH), cut.good);
        }
        for (int64_t i = 0; i < count; i += STEP) {
            const int64_t left = n < job.n ? count - i : 0;
            const __mmask64 given = left >= STEP ? ~0ull : (1ull << left) - 1;
            __builtin_prefetch(later + i, 0, 3);
            Halves halves = widen_step(_mm512_maskz_loadu_epi8(given, codes + i));
            if (FOLD) {
                const __m512i add = _mm512_permutexvar_epi16(which, power);
                which = _mm512_add_epi16(which, _mm512_set1_epi16(2));
                halves = {{times(halves.part[0], add), times(halves.part[1], add)}};
            }
            _mm512_store_si512(to + i / REACH * PAIRS, halves.part[0]);
            _mm512_store_si512(to + (i / REACH + 1) * PAIRS, halves.part[1]);
        }
    }
}

KT_TARGET inline void widen(const kt_fp8_job& job, Cut& cut, int64_t rows = HIGH) {
    folds(job) ? widen_rows<true>(job, cut, rows) : widen_rows<false>(job, cut, rows);
}

}  // namespace kt::amx

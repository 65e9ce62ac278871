// The product in tiles (AMX): 32 rows of the weight, widened to bf16 in the first-level cache, times 16 or 32 rows of x at
// a time. Products and sums are float32; a scale that many columns of k share is applied to their sum.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu_fp8_amx_widen.h"

namespace kt::amx {

constexpr int64_t FRESH = 4 * TILE;  // floats of the sums of four tiles

// True if HIGH rows of the weight have one scale.
inline bool alike(const kt_fp8_job& job) { return folds(job) || job.block_n != 1; }

// Scales of weights [column, column + HIGH) for the columns of k from `start` on. False if one cannot scale sums.
KT_TARGET inline bool read_scales(const kt_fp8_job& job, int64_t column, int64_t start, float (&scales)[HIGH]) {
    if (alike(job)) {
        const float scale = folds(job) ? 1.0f : vbmi::scale_at(job, column / job.block_n, start / job.block_k);
        for (float& one : scales) one = scale;
        return modest(scale);
    }
    bool good = true;
    for (int64_t r = 0; r < HIGH; ++r) {
        scales[r] = vbmi::scale_at(job, smaller(column + r, job.n - 1), start / job.block_k);
        good &= modest(scales[r]);
    }
    return good;
}

// What is multiplied, and what is widened meanwhile for the next time, if anything.
struct Factors {
    uint16_t* weights;
    const uint16_t* x;
    Cut* next;
    int64_t rows;  // of the next cut, for each step
};

// Sums of tiles 0 and 1 (2 and 3: of the next 16 rows of x) += weights * x over `steps` tiles along k.
template <bool TWO>
KT_INLINE void add_steps(const kt_fp8_job& job, const Inputs& in, const Factors& at, int64_t steps) {
    const int64_t next = in.tile(1, 0) - in.tile(0, 0);
    const uint16_t* x = at.x;
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(4, at.weights + s * PAIRS, 64);
        _tile_loadd(5, wide_tile(at.weights, 1, s * REACH), 64);
        for (int p = 0; p < in.pieces; ++p, x += PAIRS) {
            _tile_stream_loadd(6, x, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (TWO) {
                _tile_stream_loadd(7, x + next, 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        if (at.next) widen(job, *at.next, at.rows);
    }
}

// sums: those of four tiles in order, two without TWO
template <bool TWO>
KT_TARGET inline void add_tiles(const kt_fp8_job& job, const Inputs& in, const Factors& at, int64_t steps, bool first,
                                float* sums) {
    asm volatile("" ::: "memory");  // tiles are loaded behind the compiler's back
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        if (TWO) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + TILE, 64);
        if (TWO) {
            _tile_loadd(2, sums + 2 * TILE, 64);
            _tile_loadd(3, sums + 3 * TILE, 64);
        }
    }
    add_steps<TWO>(job, in, at, steps);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    if (TWO) {
        _tile_stored(2, sums + 2 * TILE, 64);
        _tile_stored(3, sums + 3 * TILE, 64);
    }
}

// to += from * scales of one row tile of x, two tiles of weights; ALIKE: whose rows have one scale
template <bool ALIKE>
KT_TARGET inline void scale_sums(const float* from, const float* x_scales, const float* scales, bool first, float* to) {
    const __m512 of_rows = _mm512_load_ps(x_scales), same = of_rows * _mm512_set1_ps(scales[0]);
#pragma GCC unroll 8
    for (int64_t r = 0; r < HIGH; ++r) {
        const __m512 scale = ALIKE ? same : of_rows * _mm512_set1_ps(scales[r]);
        const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(to + r * EDGE);
        _mm512_store_ps(to + r * EDGE, _mm512_fmadd_ps(_mm512_load_ps(from + r * EDGE), scale, before));
    }
}

// One cut, widened, for all rows of x; meanwhile the next one is widened, if there is one. sums [row tiles][2][EDGE rows
// of the weight][EDGE rows of x], fresh [FRESH] is scratch. False if a sum cannot be scaled.
KT_TARGET inline bool add_cut(const kt_fp8_job& job, const Inputs& in, const Cut& cut, Cut* next, float* fresh,
                              float* sums) {
    const int64_t count = smaller(CUT, job.k - cut.start), span = has_spans(job) ? SPAN : CUT;
    const int64_t rows = std::max<int64_t>(1, HIGH * REACH / CUT / ceil_div(in.row_tiles(), 2));
    bool good = cut.good;
    for (int64_t done = 0; done < count; done += span) {
        const int64_t at = cut.start + done, steps = ceil_div(smaller(span, count - done), STEP) * 2;
        float scales[HIGH];
        if (has_spans(job)) good &= read_scales(job, cut.column, at, scales);
        for (int64_t t = 0; t < in.row_tiles(); t += 2) {
            const bool two = t + 1 < in.row_tiles();
            float* const kept = sums + t * 2 * TILE;
            const Factors factors{cut.wide + done / REACH * PAIRS, in.tile(t, at), next, rows};
            const bool first = has_spans(job) || cut.start == 0;
            (two ? add_tiles<true> : add_tiles<false>)(job, in, factors, steps, first, has_spans(job) ? fresh : kept);
            for (int64_t q = 0; has_spans(job) && q < 1 + two; ++q) {
                const float *const from = fresh + q * 2 * TILE, *const of_rows = in.scale(t + q, at / SPAN);
                const auto add = alike(job) ? scale_sums<true> : scale_sums<false>;
                add(from, of_rows, scales, at == 0, kept + q * 2 * TILE);
            }
        }
    }
    if (next) widen(job, *next);
    return good;
}

KT_INLINE void store_row(const kt_fp8_job& job, int64_t at, __m512 values, __mmask16 given) {
    if (job.out_type == KT_F32) return _mm512_mask_storeu_ps(static_cast<float*>(job.out) + at, given, values);
    __m256i halves = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (job.out_type == KT_BF16) {
        const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
        const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
        const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
        halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
    }
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(job.out) + at, given, halves);
}

// The sums of HIGH columns of the result, scaled unless spans were, bias added, rounded and stored. False as read_scales.
KT_TARGET inline bool finish(const kt_fp8_job& job, const Inputs& in, int64_t column, const float* sums) {
    float scales[HIGH];
    const bool scaled = has_spans(job), good = scaled || read_scales(job, column, 0, scales);
    for (int64_t t = 0; t < in.row_tiles(); ++t) {
        const __m512 of_rows = _mm512_load_ps(in.scale(t, 0));
        for (int64_t h = 0; h < 2 && column + h * EDGE < job.n; ++h) {
            const int64_t n = column + h * EDGE, width = smaller(EDGE, job.n - n);
            __m512i v[EDGE];
#pragma GCC unroll 16
            for (int r = 0; r < EDGE; ++r) {
                __m512 value = _mm512_load_ps(sums + (t * 2 + h) * TILE + r * EDGE);
                if (!scaled) value = value * (of_rows * _mm512_set1_ps(scales[h * EDGE + r]));
                if (job.bias && r < width) value = value + _mm512_set1_ps(job.bias[n + r]);
                v[r] = _mm512_castps_si512(value);
            }
            transpose(v);
            const __mmask16 given = static_cast<__mmask16>((1u << width) - 1);
#pragma GCC unroll 16
            for (int r = 0; r < EDGE; ++r) {
                if (t * EDGE + r >= in.rows) continue;
                store_row(job, (in.first + t * EDGE + r) * job.out_stride + n, _mm512_castsi512_ps(v[r]), given);
            }
        }
    }
    return good;
}

// Output columns [column, column + panels * HIGH) or up to n. odd, one a panel, becomes 1 where another path has to do it
// all again. scratch as scratch_floats says: cuts widened in turns, fresh sums of one span, and sums of each panel.
KT_TARGET inline void multiply(const kt_fp8_job& job, const Inputs& in, int64_t column, int64_t panels, float* scratch,
                               uint8_t* odd) {
    const int64_t here = smaller(panels, ceil_div(job.n - column, HIGH)), cuts = here * ceil_div(job.k, CUT);
    const int64_t each = in.row_tiles() * 2 * TILE;
    float *const fresh = scratch + 2 * WIDE, *const sums = fresh + FRESH;
    // Beyond the last cut there are those of the panels below.
    const auto column_of = [&](int64_t i) { return column + (i / cuts * here + i % cuts % here) * HIGH; };
    const auto start_of = [&](int64_t i) { return i % cuts / here * CUT; };
    const auto cut_of = [&](int64_t i) {
        uint16_t* const wide = reinterpret_cast<uint16_t*>(scratch + i % 2 * WIDE);
        return Cut{column_of(i), start_of(i), wide, column_of(i + LATER), start_of(i + LATER)};
    };
    Cut cut = cut_of(0);
    widen(job, cut);
    for (int64_t i = 0; i < cuts; ++i) {
        Cut next = cut_of(i + 1);
        if (!add_cut(job, in, cut, i + 1 < cuts ? &next : nullptr, fresh, sums + i % here * each)) odd[i % here] = 1;
        cut = next;
    }
    for (int64_t p = 0; p < here; ++p) {
        if (!finish(job, in, column + p * HIGH, sums + p * each)) odd[p] = 1;
    }
}

inline int64_t scratch_floats(const Inputs& in, int64_t panels) {
    return 2 * WIDE + FRESH + panels * in.row_tiles() * 2 * TILE;
}

// True if the processor has tiles of bf16 and Linux lets this process use them.
inline bool permitted() {
    constexpr unsigned BF16 = 1u << 22, TILE_REGISTERS = 1u << 24, PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool answer = [] {
        unsigned a, b, c, d = 0;
        const bool known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE_REGISTERS);
        return known && syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0;
    }();
    return answer;
}

struct Configuration {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles for as long as it lives, all of EDGE rows of 64 bytes.
class Tiles {
  public:
    KT_TARGET Tiles() {
        Configuration layout;
        for (int i = 0; i < 8; ++i) layout.bytes[i] = 64, layout.rows[i] = EDGE;
        asm volatile("" ::"r"(&layout) : "memory");  // the compiler does not see that it is read
        _tile_loadconfig(&layout);
    }
    KT_TARGET ~Tiles() { _tile_release(); }
};

}  // namespace kt::amx

#undef KT_TARGET
#undef KT_INLINE

// Inputs of the product in tiles (AMX): rows of x as bf16 numbers, exactly, in the order in which tiles take them.
#pragma once

namespace kt::amx {

#define KT_TARGET \
    __attribute__((target("amx-tile,amx-bf16,avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define KT_INLINE KT_TARGET inline __attribute__((always_inline))

constexpr int64_t EDGE = 16;                 // rows of a tile, and columns of one that holds sums
constexpr int64_t TILE = EDGE * EDGE;        // float32 or pairs of bf16 in a tile
constexpr int64_t PAIRS = 2 * TILE;          // bf16 in a tile
constexpr int64_t REACH = 32;                // columns of k in a tile of operands
constexpr int64_t STEP = 2 * REACH;          // codes that are widened at once
constexpr int64_t SPAN = 128;                // columns of k whose sums have scales of their own
constexpr int FOLDED = 40;                   // scales of 2^-40 to 2^40 may be folded into weights

// Rows [first, first + rows) of x.
struct Inputs {
    uint16_t* lines;  // [rows, up to a whole tile][pieces][depth]
    uint16_t* tiles;  // [row tiles][depth / REACH][pieces][EDGE pairs of columns][EDGE rows][2]
    float* scales;    // [row tiles][spans][EDGE rows]
    uint8_t* odd;     // [rows]: 1 if the row has numbers whose products might be subnormal, infinite or NaN
    int64_t first, rows, depth, spans;
    int pieces;  // bf16 numbers whose sum is one of x

    int64_t row_tiles() const { return ceil_div(rows, EDGE); }
    uint16_t* tile(int64_t row_tile, int64_t column) const {
        return tiles + (row_tile * (depth / REACH) + column / REACH) * pieces * PAIRS;
    }
    float* scale(int64_t row_tile, int64_t span) const { return scales + (row_tile * spans + span) * EDGE; }
};

// True if scales of weights are folded into them: those of 32 columns would leave sums of one tile.
inline bool folds(const kt_fp8_job& job) {
    return job.block_k == REACH && job.block_k < job.k && job.scale_type == KT_SCALE_E8M0;
}

inline bool whole_groups(const kt_fp8_job& job) { return job.input != KT_INPUT_GROUP || job.input_group >= job.k; }

// True if sums have a scale for each SPAN columns, not one for all of k.
inline bool has_spans(const kt_fp8_job& job) {
    return !whole_groups(job) || (job.block_k < job.k && !folds(job));
}

// True if both operands are sums of few bf16 numbers, times scales that many columns share.
inline bool takes(const kt_fp8_job& job) {
    const bool columns = job.block_k >= job.k || job.block_k % SPAN == 0 || folds(job);
    const bool rows = job.block_n == 1 || job.block_n % (2 * EDGE) == 0 || job.block_n >= job.n;
    return job.k > 0 && columns && rows && (whole_groups(job) || job.input_group % SPAN == 0);
}

// Numbers of x as it is have 8, 11 or 24 bits, those of quantized ones 4.
inline int pieces_of(const kt_fp8_job& job) {
    if (job.input != KT_INPUT_PLAIN) return 1;
    return job.x_type == KT_BF16 ? 1 : job.x_type == KT_F16 ? 2 : 3;
}

// Products with scales of this size neither overflow nor lose bits.
inline bool modest(float scale) {
    const float size = __builtin_fabsf(scale);
    return size == 0.0f || (size >= 0x1p-60f && size <= 0x1p60f);
}

// True if every product and every sum of products is 0 or a normal number, since tiles take subnormal ones for 0: the
// last bit of x times the last bit of a weight, 2^-9, is at least 2^-126, and 2^25 products stay below 2^127.
KT_TARGET inline bool safe(const kt_fp8_job& job, const float* line) {
    const int folded = folds(job) ? FOLDED : 0;
    const uint32_t low = static_cast<uint32_t>(127 - 110 + folded + 8 * (pieces_of(job) - 1)) << 23;
    const uint32_t high = static_cast<uint32_t>(127 + 92 - folded) << 23;
    uint32_t most = 0, least = 0xffffffffu;  // 0 is above every other number
    for (int64_t i = 0; i < job.k; ++i) {
        const uint32_t size = to_bits(line[i]) & 0x7fffffffu, below = size - 1;
        most = size > most ? size : most;
        least = below < least ? below : least;
    }
    return most <= high && least >= low - 1;
}

KT_TARGET inline void to_codes(float* line, int64_t count, float scale) {
    for (int64_t i = 0; i < count; ++i) line[i] = e4m3_nearest(line[i] / scale);
}

// One row quantized, its scales of spans from `scales` on, EDGE apart. False if it is odd.
KT_TARGET inline bool quantize(const kt_fp8_job& job, const Inputs& in, float* line, float* scales) {
    for (int64_t s = 0; s < in.spans; ++s) scales[s * EDGE] = job.input == KT_INPUT_STATIC ? job.input_scale : 1.0f;
    if (job.input == KT_INPUT_PLAIN || job.input == KT_INPUT_MX) {
        vbmi::quantize_row(job, line);
        return safe(job, line);
    }
    bool good = true;
    const bool fixed = job.input == KT_INPUT_STATIC;
    const int64_t group = fixed ? job.k : job.input_group;
    for (int64_t start = 0; start < job.k; start += group) {
        const int64_t count = smaller(group, job.k - start);
        const float amax = fixed ? 1.0f : vbmi::largest(line + start, count);
        const float scale = fixed ? job.input_scale : fp8_scale(amax, job.input_scale_ub);
        to_codes(line + start, count, scale);
        const float kept = amax == 0.0f ? 1.0f : scale;
        good &= modest(kept);
        const int64_t end = in.spans == 1 ? 1 : ceil_div(start + count, SPAN);
        for (int64_t s = in.spans == 1 ? 0 : start / SPAN; s < end; ++s) scales[s * EDGE] = kept;
    }
    return good & safe(job, line);
}

// One row of x, or beyond the last one zeros; line is scratch [k].
KT_TARGET inline void pack_row(const kt_fp8_job& job, const Inputs& in, int64_t row, float* line) {
    uint16_t* const to = in.lines + row * in.pieces * in.depth;
    std::memset(to, 0, in.pieces * in.depth * sizeof(uint16_t));
    float* const scales = in.scale(row / EDGE, 0) + row % EDGE;
    if (row >= in.rows) {
        for (int64_t s = 0; s < in.spans; ++s) scales[s * EDGE] = 0.0f;
        return;
    }
    vbmi::read_row(job, in.first + row, line);
    in.odd[row] = !quantize(job, in, line, scales);
    if (in.odd[row]) return;
    for (int p = 0; p < in.pieces; ++p) {
        for (int64_t i = 0; i < job.k; ++i) {
            const uint32_t piece = to_bits(line[i]) & 0xffff0000u;
            to[p * in.depth + i] = static_cast<uint16_t>(piece >> 16);
            line[i] -= from_bits(piece);
        }
    }
}

// For each distance of a step of a transposition, the lanes of two vectors that make up each of the next two.
struct Exchange {
    alignas(64) int32_t lanes[4][2][EDGE];
    constexpr Exchange() : lanes() {
        for (int step = 0; step < 4; ++step) {
            for (int lane = 0, far = 1 << step; lane < EDGE; ++lane) {
                lanes[step][0][lane] = lane & far ? EDGE + lane - far : lane;
                lanes[step][1][lane] = lane & far ? EDGE + lane : lane + far;
            }
        }
    }
};
inline constexpr Exchange EXCHANGE{};

// Lane j of vector i becomes lane i of vector j.
KT_INLINE void transpose(__m512i (&v)[EDGE]) {
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
        const __m512i upper = _mm512_load_si512(EXCHANGE.lanes[step][0]);
        const __m512i lower = _mm512_load_si512(EXCHANGE.lanes[step][1]);
#pragma GCC unroll 16
        for (int i = 0; i < EDGE; ++i) {
            const int far = 1 << step;
            if (i & far) continue;
            const __m512i a = v[i], b = v[i + far];
            v[i] = _mm512_permutex2var_epi32(a, upper, b);
            v[i + far] = _mm512_permutex2var_epi32(a, lower, b);
        }
    }
}

// Columns [start, start + count) of one tile of rows, whole steps: pair d of a step goes where widening leaves codes 2 d
// and 2 d + 1 (see widen_step).
KT_TARGET inline void pack_tiles(const Inputs& in, int64_t row_tile, int64_t start, int64_t count) {
    for (int64_t column = start; column < start + count; column += STEP) {
        for (int64_t part = 0; part < 2 * in.pieces; ++part) {
            const int64_t p = part / 2, half = part % 2;
            __m512i v[EDGE];
#pragma GCC unroll 16
            for (int r = 0; r < EDGE; ++r) {
                const uint16_t* const line = in.lines + ((row_tile * EDGE + r) * in.pieces + p) * in.depth;
                v[r] = _mm512_loadu_si512(line + column + half * REACH);
            }
            transpose(v);
            uint16_t* const even = in.tile(row_tile, column) + p * PAIRS;
            uint16_t* const odd = in.tile(row_tile, column + REACH) + p * PAIRS;
#pragma GCC unroll 16
            for (int i = 0; i < EDGE; ++i) {
                const int64_t pair = half * (EDGE / 2) + i / 8 * 4 + i % 4;
                _mm512_store_si512((i / 4 % 2 ? odd : even) + pair * 2 * EDGE, v[i]);
            }
        }
    }
}

}  // namespace kt::amx

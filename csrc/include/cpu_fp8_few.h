// The product of a few rows for one instruction path: part of cpu_fp8_path.h, included once for each. Weights are widened in
// registers and used for all of up to FEW rows at once, without a detour through memory.

namespace kt::KT_PATH {

constexpr int64_t PASS = 8192;   // columns of k whose units are held at a time, a multiple of DEPTH
constexpr int64_t AHEAD = 1024;  // codes of a row between what is fetched and what is widened

using PanelUnits = float[COLUMNS][PASS / RUN];

// Those of COLUMNS rows of the weight from `column` on, see read_units. False if one is of no use.
KT_TARGET inline bool read_panel(const kt_fp8_job& job, int64_t column, int64_t start, int64_t count, PanelUnits& units) {
    for (int64_t c = 0; c < COLUMNS; ++c) {
        if (c && (column + c) % job.block_n) {
            std::memcpy(units[c], units[c - 1], (kept_bits(job) ? ceil_div(count, RUN) : 1) * sizeof(float));
        } else if (!read_units(job, (column + c) / job.block_n, start, count, units[c])) {
            return false;
        }
    }
    return true;
}

// A stretch of whole steps along k.
struct Stretch {
    const float* x;        // [R][count], rows DEPTH apart
    const uint8_t* codes;  // [C][count]
    const float* units;    // of each row of codes, PASS / RUN apart
    int64_t count, rest;   // columns, and how many there are from here to the end of k
    bool first;            // of k
};

// sums[R][COLUMNS] of vectors += x * weights, the first C columns of them. Meanwhile codes further along in each row are
// fetched, and behind its end those at the beginning of the row COLUMNS below: a processor by itself does not follow into
// another page. Below the last of them nothing is read, since fetching cannot fault.
template <int R, int C>
KT_TARGET inline void add_columns(const kt_fp8_job& job, const Stretch& at, float* sums) {
    const int64_t stride = job.weight_stride, kept = kept_bits(job), below = COLUMNS * stride - job.k;
    Vec sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = at.first ? zero() : load(sums + (r * COLUMNS + c) * LANES);
    }
    for (int64_t i = 0; i < at.count; i += STEP) {
        const uint8_t* const ahead = at.codes + i + AHEAD + (i + AHEAD < at.rest ? 0 : below);
        Wide weights[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            if (i % LINE == 0) __builtin_prefetch(ahead + c * stride, 0, 2);
            weights[c] = scaled_step(at.codes + c * stride, at.units + c * (PASS / RUN), i, kept);
        }
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; ++p) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vec x = load(at.x + r * DEPTH + i + p * LANES);
                if constexpr (R > 1) asm("" : "+v"(x));  // or it is read again for each column, which takes as long
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) sum[r][c] = multiply_add(x, weights[c].part[p], sum[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(sums + (r * COLUMNS + c) * LANES, sum[r][c]);
    }
}

// As many columns at a time as registers have room for: R * C sums and C steps of weights.
template <int R>
KT_TARGET inline void add_panel(const kt_fp8_job& job, Stretch at, float* sums) {
    constexpr int C = R == 1 ? COLUMNS : R <= 4 ? COLUMNS / 2 : COLUMNS / 3;
    static_assert(COLUMNS % C == 0, "columns of a panel");
    for (int c = 0; c < COLUMNS; c += C) {
        add_columns<R, C>(job, at, sums + c * LANES);
        at.codes += C * job.weight_stride, at.units += C * (PASS / RUN);
    }
}

template <int R = FEW>
KT_TARGET inline void add_few(const kt_fp8_job& job, int64_t rows, const Stretch& at, float* sums) {
    if constexpr (R > 1) {
        if (rows < R) return add_few<R - 1>(job, rows, at, sums);
    }
    add_panel<R>(job, at, sums);
}

// The sums of one panel, as multiply_rows leaves them. False, with nothing of use in scratch, for more rows, and where scales
// or columns do not fit.
KT_TARGET inline bool multiply_few(const kt_fp8_job& job, const Rows& rows, int64_t column, float* scratch) {
    if (rows.height > FEW || column + COLUMNS > job.n || !has_runs(job)) return false;
    alignas(64) PanelUnits units;
    float* const sums = scratch + COLUMNS * DEPTH;
    const int64_t rest = job.k % STEP, whole = job.k - rest, kept = kept_bits(job);
    const int64_t most = rows.height > 1 ? DEPTH : PASS;  // the depth blocks of one row follow one another
    for (int64_t start = 0, count; start < whole; start += count) {
        if (start % PASS == 0 && !read_panel(job, column, start, smaller(PASS, whole - start), units)) return false;
        count = smaller(most, whole - start);
        const float* const of_stretch = units[0] + (start % PASS / RUN & kept);
        const uint8_t* const codes = job.weight + column * job.weight_stride + start;
        add_few(job, rows.rows, {rows.at(start / DEPTH, 0), codes, of_stretch, count, job.k - start, start == 0}, sums);
    }
    if (!rest) return true;
    widen_panel(job, column, whole, rest, scratch);
    for (int64_t row = 0; row < rows.rows; row += ROWS) {
        const float* const x = rows.at(whole / DEPTH, row) + whole % DEPTH;
        add_rows(rows.rows - row, x, scratch, ceil_div(rest, LANES) * LANES, whole == 0, sums + row * ROW_SUMS);
    }
    return true;
}

}  // namespace kt::KT_PATH

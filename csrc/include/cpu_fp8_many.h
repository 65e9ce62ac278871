// The product of many rows for one instruction path: part of cpu_fp8_path.h, included once for each. Weights are widened into
// the first-level cache, and multiplied with all rows from there.

namespace kt::KT_PATH {

constexpr int64_t ROW_SUMS = COLUMNS * LANES;  // floats of one row's sums

// sums[R][COLUMNS] of vectors += x[R][depth] * weights[COLUMNS][depth], one vector along the depth at a time. Meanwhile the
// rows of x that come next are fetched from the second-level cache.
template <int R>
KT_TARGET inline void add_products(const float* x, const float* weights, int64_t depth, bool first, float* sums) {
    Vec sum[R][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = first ? zero() : load(sums + (r * COLUMNS + c) * LANES);
    }
    for (int64_t i = 0; i < depth; i += LANES) {
        Vec row[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            row[r] = load(x + r * DEPTH + i);
            if (R == ROWS) __builtin_prefetch(x + (r + R) * DEPTH + i);
        }
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; ++c) {
            const Vec weight = load(weights + c * DEPTH + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[r][c] = multiply_add(row[r], weight, sum[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; ++c) store(sums + (r * COLUMNS + c) * LANES, sum[r][c]);
    }
}

KT_TARGET inline void add_rows(int64_t rows, const float* x, const float* w, int64_t depth, bool first, float* sums) {
    if (rows >= 4 && ROWS >= 4) return add_products<4>(x, w, depth, first, sums);
    if (rows >= 3) return add_products<3>(x, w, depth, first, sums);
    if (rows == 2) return add_products<2>(x, w, depth, first, sums);
    add_products<1>(x, w, depth, first, sums);
}

// scratch: widened weights [COLUMNS][DEPTH], which stay in the first-level cache, then sums [panels][rows][COLUMNS][LANES].
KT_TARGET inline void multiply_rows(const kt_fp8_job& job, const Rows& rows, int64_t column, int panels, float* scratch) {
    float* const sums = scratch + COLUMNS * DEPTH;
    for (int64_t start = 0, block = 0; start < job.k; start += DEPTH, ++block) {
        const int64_t count = smaller(DEPTH, job.k - start), depth = ceil_div(count, LANES) * LANES;
        for (int p = 0; p < panels; ++p) {
            widen_panel(job, column + p * COLUMNS, start, count, scratch);
            for (int64_t row = 0; row < rows.rows; row += ROWS) {
                add_rows(rows.rows - row, rows.at(block, row), scratch, depth, block == 0,
                         sums + (p * rows.rows + row) * ROW_SUMS);
            }
        }
    }
}

}  // namespace kt::KT_PATH

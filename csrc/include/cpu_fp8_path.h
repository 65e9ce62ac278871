// The product for one instruction path; included once for each, with KT_PATH naming the namespace that holds the vectors.
// Every output is one chain: lane l adds the products of columns l, l + LANES, ... of k in order, then the lanes are
// added. The chain does not depend on m, on the tile or on the thread, so neither does any bit of the result.

namespace kt::KT_PATH {

constexpr int64_t ROW_SUMS = COLUMNS * LANES;  // floats of one row's sums
constexpr int PARTS = STEP / LANES;            // vectors of one step
constexpr int64_t RUN = 32;                    // columns of k, the smallest block of a scheme, that share a unit below
constexpr int64_t PASS = 8192;                 // columns of k whose units are held at a time for one row
constexpr int64_t LINE = 64;                   // bytes of a cache line
constexpr int64_t AHEAD = 1024;                // codes of a row between what is fetched and what is widened, for one row of x

KT_TARGET inline void read_row(const kt_fp8_job& job, int64_t row, float* line) {
    const int64_t k = job.k, start = row * job.x_stride;
    if (job.x_type == KT_F32) {
        std::memcpy(line, static_cast<const float*>(job.x) + start, k * sizeof(float));
    } else if (job.x_type == KT_BF16) {
        const uint16_t* from = static_cast<const uint16_t*>(job.x) + start;
        for (int64_t i = 0; i < k; ++i) line[i] = bf16_value(from[i]);
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(job.x) + start;
        for (int64_t i = 0; i < k; ++i) line[i] = f16_value(from[i]);
    }
}

// Magnitudes of floats are in the order of their bits, and a NaN is above infinity: an integer maximum keeps it.
KT_TARGET inline float largest(const float* line, int64_t count) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t magnitude = to_bits(line[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    return from_bits(most);
}

KT_TARGET inline void requantize(float* line, int64_t count, float scale) {
    for (int64_t i = 0; i < count; ++i) line[i] = e4m3_nearest(line[i] / scale) * scale;
}

KT_TARGET inline void quantize_row(const kt_fp8_job& job, float* line) {
    if (job.input == KT_INPUT_PLAIN) return;
    if (job.input == KT_INPUT_STATIC) return requantize(line, job.k, job.input_scale);
    for (int64_t start = 0; start < job.k; start += job.input_group) {
        const int64_t count = smaller(job.input_group, job.k - start);
        const float amax = largest(line + start, count);
        requantize(line + start, count, job.input == KT_INPUT_MX ? mx_scale(amax) : fp8_scale(amax, job.input_scale_ub));
    }
}

KT_TARGET inline float amax(const kt_fp8_job& job, int64_t row, float* line) {
    read_row(job, row, line);
    return largest(line, job.k);
}

KT_TARGET inline void pack(const kt_fp8_job& job, const Rows& rows, int64_t row, float* line) {
    read_row(job, rows.first + row, line);
    quantize_row(job, line);
    for (int64_t start = 0, block = 0; start < job.k; start += DEPTH, ++block) {
        const int64_t count = smaller(DEPTH, job.k - start);
        float* to = rows.at(block, row);
        std::memcpy(to, line + start, count * sizeof(float));
        std::memset(to + count, 0, (DEPTH - count) * sizeof(float));
    }
}

KT_TARGET inline float scale_at(const kt_fp8_job& job, int64_t row, int64_t column) {
    const int64_t at = row * job.scale_stride + column;
    if (job.scale_type == KT_SCALE_E8M0) return e8m0_value(static_cast<const uint8_t*>(job.scale)[at]);
    return static_cast<const float*>(job.scale)[at];
}

// True if every run of columns has one scale.
inline bool has_runs(const kt_fp8_job& job) { return job.block_k % RUN == 0 || job.block_k >= job.k; }

// Which bits of the index of a run count: none where one unit serves all of k.
inline int64_t kept_bits(const kt_fp8_job& job) { return job.block_k < job.k ? -1 : 0; }

// units[i] = UNIT * scale of columns [start + i * RUN, ...) of k, up to count columns, start a multiple of RUN; one unit
// alone if it serves all of k. False if one is of no use.
KT_TARGET inline bool read_units(const kt_fp8_job& job, int64_t scale_row, int64_t start, int64_t count,
                                 float* units) {
    const int64_t runs = kept_bits(job) ? ceil_div(count, RUN) : 1, width = job.block_k / RUN;
    bool good = true;
    if (job.scale_type == KT_SCALE_E8M0 && width == 1) {
        const int64_t at = scale_row * job.scale_stride + start / RUN;
        const uint8_t* const codes = static_cast<const uint8_t*>(job.scale) + at;
        for (int64_t i = 0; i < runs; ++i) units[i] = e8m0_value(codes[i]) * UNIT;
        for (int64_t i = 0; i < runs; ++i) good &= usable(units[i], UNIT);
        return good;
    }
    for (int64_t i = 0, column = start / job.block_k; i < runs; ++column) {
        const float unit = scale_at(job, scale_row, column) * UNIT;
        good &= usable(unit, UNIT);
        const int64_t next = kept_bits(job) ? smaller(runs, (column + 1) * width - start / RUN) : 1;
        for (; i < next; ++i) units[i] = unit;
    }
    return good;
}

// float32(value * scale) of the STEP codes at column i of those that units describe
KT_INLINE Wide scaled_step(const uint8_t* codes, const float* units, int64_t i, int64_t kept) {
    Wide weights = widen_step(codes + i);
#pragma GCC unroll 8
    for (int p = 0; p < PARTS; ++p) weights.part[p] = weights.part[p] * all(units[((i + p * LANES) / RUN) & kept]);
    return weights;
}

// Weights of output column n, columns [start, start + count) of k, to to[DEPTH]; zero up to a whole vector.
KT_TARGET inline void widen_column(const kt_fp8_job& job, int64_t n, int64_t start, int64_t count, float* to) {
    const uint8_t* const codes = job.weight + n * job.weight_stride + start;
    const int64_t scale_row = n / job.block_n;
    int64_t done = 0;
    float units[DEPTH / RUN];
    // Wider blocks have less to gain; the rest of a row may start within a block.
    if (job.block_k == RUN && start % RUN == 0 && read_units(job, scale_row, start, count, units)) {
        for (; done + STEP <= count; done += STEP) {
            const Wide weights = scaled_step(codes, units, done, -1);
#pragma GCC unroll 8
            for (int p = 0; p < PARTS; ++p) store(to + done + p * LANES, weights.part[p]);
        }
    }
    for (int64_t column = (start + done) / job.block_k; done < count; ++column) {
        const int64_t next = smaller(count, (column + 1) * job.block_k - start);
        widen(codes + done, static_cast<int>(next - done), scale_at(job, scale_row, column), to + done);
        done = next;
    }
    for (; done % LANES; ++done) to[done] = 0.0f;
}

// Meanwhile the codes that follow are fetched, which a processor by itself does too late. Beyond the last of them nothing is
// read, since fetching cannot fault.
KT_TARGET inline void widen_panel(const kt_fp8_job& job, int64_t column, int64_t start, int64_t count, float* to) {
    for (int c = 0; c < COLUMNS; ++c, to += DEPTH) {
        if (column + c < job.n) {
            const uint8_t* const next = job.weight + (column + c) * job.weight_stride + start + count;
            for (int64_t i = 0; i < DEPTH; i += LINE) __builtin_prefetch(next + i, 0, 2);
            widen_column(job, column + c, start, count, to);
        } else {
            std::memset(to, 0, DEPTH * sizeof(float));
        }
    }
}

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

// For one row, without a detour through memory: sums[COLUMNS] of vectors += x * weights, widened in registers, for
// columns [start, start + count) of k, whole steps. False, with nothing done, if a scale is of no use. Meanwhile codes
// further along in each row are fetched, and behind its end those at the beginning of the row COLUMNS below: a processor
// by itself does not follow into another page. Below the last of them nothing is read, since fetching cannot fault.
KT_TARGET inline bool add_row(const kt_fp8_job& job, const float* x, int64_t column, int64_t start, int64_t count,
                              float* sums) {
    alignas(64) float units[COLUMNS][PASS / RUN];
    for (int64_t c = 0; c < COLUMNS; ++c) {
        if (c && (column + c) % job.block_n) {
            std::memcpy(units[c], units[c - 1], (kept_bits(job) ? ceil_div(count, RUN) : 1) * sizeof(float));
        } else if (!read_units(job, (column + c) / job.block_n, start, count, units[c])) {
            return false;
        }
    }
    const int64_t stride = job.weight_stride, kept = kept_bits(job);
    const uint8_t* const codes = job.weight + column * stride + start;
    const int64_t rest = job.k - start, below = COLUMNS * stride - job.k;
    Vec sum[COLUMNS];
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) sum[c] = start ? load(sums + c * LANES) : zero();
    for (int64_t i = 0; i < count; i += STEP) {
        Vec row[PARTS];
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; ++p) row[p] = load(x + i + p * LANES);
        const uint8_t* const ahead = codes + i + AHEAD + (i + AHEAD < rest ? 0 : below);
        Wide weights = scaled_step(codes, units[0], i, kept);
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; ++c) {
            if (i % LINE == 0) __builtin_prefetch(ahead + c * stride, 0, 2);
            const Wide now = weights;  // the next ones are widened while the sum of these is waited for
            if (c + 1 < COLUMNS) weights = scaled_step(codes + (c + 1) * stride, units[c + 1], i, kept);
#pragma GCC unroll 8
            for (int p = 0; p < PARTS; ++p) sum[c] = multiply_add(row[p], now.part[p], sum[c]);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) store(sums + c * LANES, sum[c]);
    return true;
}

KT_TARGET inline void write(const kt_fp8_job& job, int64_t row, int64_t column, float value) {
    const int64_t at = row * job.n + column;
    if (job.bias) value += job.bias[column];
    if (job.out_type == KT_F32) {
        static_cast<float*>(job.out)[at] = value;
    } else {
        static_cast<uint16_t*>(job.out)[at] = job.out_type == KT_BF16 ? bf16_code(value) : f16_code(value);
    }
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

// False, with nothing of use in scratch, where scales or columns do not fit add_row.
KT_TARGET inline bool multiply_one_row(const kt_fp8_job& job, const Rows& rows, int64_t column, float* scratch) {
    if (column + COLUMNS > job.n || !has_runs(job)) return false;
    const float* const x = rows.at(0, 0);  // the depth blocks of one row follow one another
    float* const sums = scratch + COLUMNS * DEPTH;
    const int64_t rest = job.k % STEP, whole = job.k - rest;
    for (int64_t start = 0; start < whole; start += PASS) {
        if (!add_row(job, x + start, column, start, smaller(PASS, whole - start), sums)) return false;
    }
    if (!rest) return true;
    widen_panel(job, column, whole, rest, scratch);
    add_products<1>(x + whole, scratch, ceil_div(rest, LANES) * LANES, whole == 0, sums);
    return true;
}

KT_TARGET inline void multiply(const kt_fp8_job& job, const Rows& rows, int64_t column, int panels, float* scratch) {
    if (rows.height > 1 || panels > 1 || !multiply_one_row(job, rows, column, scratch)) {
        multiply_rows(job, rows, column, panels, scratch);
    }
    const float* const sums = scratch + COLUMNS * DEPTH;
    for (int64_t row = 0; row < rows.rows; ++row) {
        for (int64_t c = 0; c < panels * COLUMNS && column + c < job.n; ++c) {
            const float* at = sums + ((c / COLUMNS) * rows.rows + row) * ROW_SUMS + (c % COLUMNS) * LANES;
            write(job, rows.first + row, column + c, job.k ? sum(load(at)) : 0.0f);
        }
    }
}

inline int64_t scratch_floats(int64_t rows, int panels) { return COLUMNS * (DEPTH + panels * rows * LANES); }

inline constexpr Path PATH{COLUMNS, amax, pack, multiply, scratch_floats};

}  // namespace kt::KT_PATH

#undef KT_PATH
#undef KT_TARGET
#undef KT_INLINE

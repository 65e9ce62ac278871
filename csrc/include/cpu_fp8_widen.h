// Weights widened to float32 for one instruction path: part of cpu_fp8_path.h, included once for each.

namespace kt::KT_PATH {

constexpr int PARTS = STEP / LANES;  // vectors of one step
constexpr int64_t RUN = 32;          // columns of k, the smallest block of a scheme, that share a unit below
constexpr int64_t LINE = 64;         // bytes of a cache line

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

}  // namespace kt::KT_PATH

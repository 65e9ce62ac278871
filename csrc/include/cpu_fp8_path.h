// The product for one instruction path; included once for each, with KT_PATH naming the namespace that holds the vectors.
// Every output is one chain: lane l adds the products of columns l, l + LANES, ... of k in order, then the lanes are
// added. The chain does not depend on m, on the tile or on the thread, so neither does any bit of the result.

#include "cpu_fp8_widen.h"
#include "cpu_fp8_many.h"
#include "cpu_fp8_few.h"

namespace kt::KT_PATH {

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

KT_TARGET inline void write(const kt_fp8_job& job, int64_t row, int64_t column, float value) {
    const int64_t at = row * job.out_stride + column;
    if (job.bias) value += job.bias[column];
    if (job.out_type == KT_F32) {
        static_cast<float*>(job.out)[at] = value;
    } else {
        static_cast<uint16_t*>(job.out)[at] = job.out_type == KT_BF16 ? bf16_code(value) : f16_code(value);
    }
}

KT_TARGET inline void multiply(const kt_fp8_job& job, const Rows& rows, int64_t column, int panels, float* scratch) {
    if (panels > 1 || !multiply_few(job, rows, column, scratch)) {
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

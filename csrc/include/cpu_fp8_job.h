// One product of inputs [m, k] with FP8 weights [n, k]: what the caller describes, and how the work is cut.
#pragma once

#include <cstdint>

extern "C" {

enum { KT_F32 = 0, KT_BF16 = 1, KT_F16 = 2 };                                             // element types
enum { KT_SCALE_F32 = 0, KT_SCALE_E8M0 = 1 };                                             // weight scale formats
enum { KT_INPUT_PLAIN = 0, KT_INPUT_GROUP = 1, KT_INPUT_TENSOR = 2, KT_INPUT_STATIC = 3, KT_INPUT_MX = 4 };
enum { KT_PATH_AUTO = 0, KT_PATH_PORTABLE = 1, KT_PATH_AVX2 = 2, KT_PATH_AVX512 = 3, KT_PATH_VBMI = 4,
       KT_PATH_AMX = 5 };
enum { KT_OK = 0, KT_NO_MEMORY = 1, KT_NO_SUCH_PATH = 2 };

// Strides count elements. The columns of x, weight, scale and out are contiguous.
// One weight scale covers block_n rows by block_k columns. bias is [n] float32 or null.
// input says how x is quantized first: not at all, in groups of input_group columns of a row with a float32 scale
// of at most input_scale_ub, over the whole of x, with the given input_scale, or in MX groups with an e8m0 scale.
struct kt_fp8_job {
    int64_t m, n, k, x_stride, weight_stride, scale_stride, out_stride, block_n, block_k, input_group;
    const void* x;
    const uint8_t* weight;
    const void* scale;
    const float* bias;
    void* out;
    float input_scale, input_scale_ub;
    int32_t x_type, out_type, scale_type, input, path, threads;
};

}  // extern "C"

namespace kt {

// Columns of k that are widened and multiplied at a time: 4 rows and 6 columns of them are 20 KiB, inside any L1 cache.
constexpr int64_t DEPTH = 512;
// Rows of x that are packed at a time, and how many of them are multiplied with a few columns at a time: 96 of k = 4096 are
// 1.5 MiB, which a second-level cache of 2 MiB holds, and a weight is widened once for so many.
constexpr int64_t HEIGHT = 256, CHUNK = 96;
// Up to so many rows, threads take long runs of the weight, not one panel of columns at a time: codes are fetched ahead.
constexpr int64_t LONG_RUNS = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t bytes_of(int32_t type) { return type == KT_F32 ? 4 : 2; }

// The same product for some rows of x.
inline kt_fp8_job rows_of(kt_fp8_job job, int64_t first, int64_t count) {
    job.x = static_cast<const char*>(job.x) + first * job.x_stride * bytes_of(job.x_type);
    job.out = static_cast<char*>(job.out) + first * job.out_stride * bytes_of(job.out_type);
    job.m = count;
    return job;
}

// And for some rows of the weight: all of them in one row of scales, or each with its own.
inline kt_fp8_job columns_of(kt_fp8_job job, int64_t first, int64_t count) {
    const int64_t bytes = job.scale_type == KT_SCALE_F32 ? 4 : 1;
    job.weight += first * job.weight_stride;
    job.scale = static_cast<const char*>(job.scale) + first / job.block_n * job.scale_stride * bytes;
    job.bias = job.bias ? job.bias + first : nullptr;
    job.out = static_cast<char*>(job.out) + first * bytes_of(job.out_type);
    job.n = count;
    return job;
}

// Rows [first, first + rows) of x as float32, of `height` that are packed: [depth block][height][DEPTH], zero beyond k.
struct Rows {
    float* packed;
    int64_t first, rows, height;
    float* at(int64_t block, int64_t row) const { return packed + (block * height + row) * DEPTH; }
    Rows part(int64_t start, int64_t count) const { return {packed + start * DEPTH, first + start, count, height}; }
};

// One instruction path. amax: the largest |x| of a row, NaN if it holds one. pack: one row, line is scratch [k].
// multiply: output columns [column, column + panels * columns), scratch as scratch_floats says.
struct Path {
    int columns;
    float (*amax)(const kt_fp8_job&, int64_t row, float* line);
    void (*pack)(const kt_fp8_job&, const Rows&, int64_t row, float* line);
    void (*multiply)(const kt_fp8_job&, const Rows&, int64_t column, int panels, float* scratch);
    int64_t (*scratch_floats)(int64_t rows, int panels);
};

}  // namespace kt

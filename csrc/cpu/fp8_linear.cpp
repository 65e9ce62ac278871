// out = x @ (weight * scale).T + bias on the CPU: weights stay FP8 in memory and are widened, scaled to float32, a tile
// at a time into the first-level cache; sums are float32. One function, plain C calls.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu_fp8_job.h"
#include "cpu_formats.h"
#include "cpu_simd_portable.h"
#include "cpu_threads.h"
#define KT_PATH portable
#include "cpu_fp8_path.h"

#if defined(__x86_64__)
#include "cpu_simd_avx2.h"
#define KT_PATH avx2
#include "cpu_fp8_path.h"

#include "cpu_simd_avx512.h"
#define KT_PATH avx512
#include "cpu_fp8_path.h"

#include "cpu_simd_vbmi.h"
#define KT_PATH vbmi
#include "cpu_fp8_path.h"
#endif

namespace kt {

// Sums use subnormal numbers on every thread, whatever the caller's thread is set to.
class KeepSubnormals {
#if defined(__x86_64__)
  public:
    KeepSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
    ~KeepSubnormals() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#endif
};

// Memory of one thread that is kept from call to call and grows as needed, aligned to a cache line.
class Buffer {
  public:
    ~Buffer() { std::free(start_); }
    float* get(int64_t floats) {
        if (floats > size_) {
            std::free(start_);
            start_ = nullptr, size_ = 0;
            if (posix_memalign(&start_, 64, static_cast<size_t>(floats) * sizeof(float))) return nullptr;
            size_ = floats;
        }
        return static_cast<float*>(start_);
    }

  private:
    void* start_ = nullptr;
    int64_t size_ = 0;
};

thread_local Buffer scratch_memory, packed_memory;

static const Path* choose(int wanted) {
#if defined(__x86_64__)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has_vbmi = has_avx512 && __builtin_cpu_supports("avx512vbmi");
    if (has_vbmi && (wanted == KT_PATH_AUTO || wanted == KT_PATH_VBMI)) return &vbmi::PATH;
    if (has_avx512 && (wanted == KT_PATH_AUTO || wanted == KT_PATH_AVX512)) return &avx512::PATH;
    if (has_avx2 && (wanted == KT_PATH_AUTO || wanted == KT_PATH_AVX2)) return &avx2::PATH;
#endif
    return wanted == KT_PATH_AUTO || wanted == KT_PATH_PORTABLE ? &portable::PATH : nullptr;
}

struct Work {
    kt_fp8_job job;
    const Path& path;
    Rows rows{};
    int panels = 1;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::atomic<uint32_t> most{0};  // bits of the largest |x| so far
};

static float* scratch_of(Work& work, int64_t floats) {
    float* scratch = scratch_memory.get(floats);
    if (!scratch) work.failed = true;
    return scratch;
}

static void find_amax(void* context) {
    Work& work = *static_cast<Work*>(context);
    const KeepSubnormals mode;
    float* line = scratch_of(work, work.job.k);
    if (!line) return;
    for (int64_t row; (row = work.next++) < work.job.m;) {
        const uint32_t found = to_bits(work.path.amax(work.job, row, line));
        uint32_t most = work.most;
        while (found > most && !work.most.compare_exchange_weak(most, found)) {
        }
    }
}

static void pack_rows(void* context) {
    Work& work = *static_cast<Work*>(context);
    const KeepSubnormals mode;
    float* line = scratch_of(work, work.job.k);
    if (!line) return;
    for (int64_t row; (row = work.next++) < work.rows.rows;) work.path.pack(work.job, work.rows, row, line);
}

// For a few rows, shares of what is left: long runs of memory at first, single parts at the end. For more rows one part of
// the columns of one chunk of rows, all of a chunk before the next one.
static bool take_parts(Work& work, int64_t parts, int64_t& first, int64_t& count) {
    first = work.next;
    do {
        if (first >= parts) return false;
        const int64_t share = work.rows.rows > LONG_RUNS ? 1 : (parts - first) / (2 * std::max(1, work.job.threads));
        count = std::max<int64_t>(1, share);
    } while (!work.next.compare_exchange_weak(first, first + count));
    return true;
}

static void multiply_columns(void* context) {
    Work& work = *static_cast<Work*>(context);
    const KeepSubnormals mode;
    const int64_t height = work.rows.rows, width = work.panels * work.path.columns, across = ceil_div(work.job.n, width);
    float* scratch = scratch_of(work, work.path.scratch_floats(smaller(CHUNK, height), work.panels));
    if (!scratch) return;
    for (int64_t first, count; take_parts(work, across * ceil_div(height, CHUNK), first, count);) {
        for (int64_t part = first; part < first + count; ++part) {
            const int64_t start = part / across * CHUNK;
            const Rows rows = work.rows.part(start, smaller(CHUNK, height - start));
            work.path.multiply(work.job, rows, part % across * width, work.panels, scratch);
        }
    }
}

// Sharing is worth waking another thread (some 10 us) only from about 100,000 steps on.
static void share(Work& work, Pool::Body body, int64_t parts, int64_t steps) {
    const int64_t threads = steps < 100000 ? 1 : smaller(work.job.threads, parts);
    work.next = 0;
    pool().run(static_cast<int>(threads), body, &work);
}

// Panels of columns that are multiplied with one depth block of rows while a cache holds that, if every thread still has
// some parts.
static int panels_of(const kt_fp8_job& job, const Path& path, int64_t height) {
    int panels = height > LONG_RUNS ? 8 : 1;
    while (panels > 1 && ceil_div(job.n, panels * path.columns) * ceil_div(height, CHUNK) < 4 * job.threads) panels /= 2;
    return panels;
}

static int run(const kt_fp8_job& job, const Path& path) {
    Work work{job, path};
    if (job.input == KT_INPUT_TENSOR) {
        share(work, find_amax, job.m, job.m * job.k);
        work.job.input = KT_INPUT_STATIC;
        work.job.input_scale = fp8_scale(from_bits(work.most), job.input_scale_ub);
    }
    const int64_t height = smaller(job.m, HEIGHT), depth = ceil_div(job.k, DEPTH) * DEPTH;
    work.rows.packed = packed_memory.get(height * depth);
    if (!work.rows.packed && height * depth > 0) return KT_NO_MEMORY;
    work.panels = panels_of(job, path, height);
    const int64_t across = ceil_div(job.n, work.panels * path.columns);
    for (int64_t first = 0; first < job.m && !work.failed; first += height) {
        work.rows.first = first, work.rows.rows = work.rows.height = smaller(height, job.m - first);
        share(work, pack_rows, work.rows.rows, work.rows.rows * job.k);
        const int64_t parts = across * ceil_div(work.rows.rows, CHUNK);
        if (!work.failed) share(work, multiply_columns, parts, job.n * job.k);
    }
    return work.failed ? KT_NO_MEMORY : KT_OK;
}

}  // namespace kt

extern "C" {

__attribute__((visibility("default"))) int kt_fp8_linear(const kt_fp8_job* job) {
    const kt::Path* path = kt::choose(job->path);
    if (!path) return KT_NO_SUCH_PATH;
    try {
        return kt::run(*job, *path);
    } catch (const std::bad_alloc&) {
        return KT_NO_MEMORY;
    }
}

// 1 when this machine can run the path (KT_PATH_*), else 0.
__attribute__((visibility("default"))) int kt_fp8_has_path(int32_t path) { return kt::choose(path) != nullptr; }

// Bytes of kt_fp8_job, so that the caller can see that it describes the same structure.
__attribute__((visibility("default"))) int64_t kt_fp8_job_bytes() { return sizeof(kt_fp8_job); }

}  // extern "C"

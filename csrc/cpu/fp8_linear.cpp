// out = x @ (weight * scale).T + bias on the CPU: weights stay FP8 in memory and are widened, scaled to float32, a tile
// at a time into the first-level cache; sums are float32. One function, plain C calls.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "cpu_fp8_job.h"
#include "cpu_formats.h"
#include "cpu_simd_portable.h"
#include "cpu_shares.h"
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

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 11
#define KT_HAS_AMX
#include "cpu_fp8_amx.h"
#endif

namespace kt {

static const Path* choose(int wanted) {
#if defined(__x86_64__)
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has_vbmi = has_avx512 && __builtin_cpu_supports("avx512vbmi");
#if defined(KT_HAS_AMX)
    if (wanted == KT_PATH_AMX) return has_vbmi && amx::permitted() ? &vbmi::PATH : nullptr;
#endif
    if (has_vbmi && (wanted == KT_PATH_AUTO || wanted == KT_PATH_VBMI)) return &vbmi::PATH;
    if (has_avx512 && (wanted == KT_PATH_AUTO || wanted == KT_PATH_AVX512)) return &avx512::PATH;
    if (has_avx2 && (wanted == KT_PATH_AUTO || wanted == KT_PATH_AVX2)) return &avx2::PATH;
#endif
    return wanted == KT_PATH_AUTO || wanted == KT_PATH_PORTABLE ? &portable::PATH : nullptr;
}

struct Work : Shared {
    kt_fp8_job job;
    const Path& path;
    Rows rows{};
    int panels = 1;
    std::atomic<uint32_t> most{0};  // bits of the largest |x| so far

    Work(const kt_fp8_job& given, const Path& taken) : job(given), path(taken) {}
};

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

// A scale of the whole of x is found before anything else.
static kt_fp8_job settled(const kt_fp8_job& job, const Path& path, bool& failed) {
    if (job.input != KT_INPUT_TENSOR) return job;
    Work work(job, path);
    share(work, find_amax, job.m, job.m * job.k);
    failed = work.failed;
    work.job.input = KT_INPUT_STATIC;
    work.job.input_scale = fp8_scale(from_bits(work.most), job.input_scale_ub);
    return work.job;
}

static void pack_rows(void* context) {
    Work& work = *static_cast<Work*>(context);
    const KeepSubnormals mode;
    float* line = scratch_of(work, work.job.k);
    if (!line) return;
    for (int64_t row; (row = work.next++) < work.rows.rows;) work.path.pack(work.job, work.rows, row, line);
}

static void multiply_columns(void* context) {
    Work& work = *static_cast<Work*>(context);
    const KeepSubnormals mode;
    const int64_t height = work.rows.rows, width = work.panels * work.path.columns, across = ceil_div(work.job.n, width);
    float* scratch = scratch_of(work, work.path.scratch_floats(smaller(CHUNK, height), work.panels));
    if (!scratch) return;
    for (int64_t first, count; take_parts(work, across * ceil_div(height, CHUNK), height, first, count);) {
        for (int64_t part = first; part < first + count; ++part) {
            const int64_t start = part / across * CHUNK;
            const Rows rows = work.rows.part(start, smaller(CHUNK, height - start));
            work.path.multiply(work.job, rows, part % across * width, work.panels, scratch);
        }
    }
}

// Panels of columns that are multiplied with one depth block of rows while a cache holds that, if every thread still has
// some parts.
static int panels_of(const kt_fp8_job& job, const Path& path, int64_t height) {
    int panels = height > LONG_RUNS ? 8 : 1;
    while (panels > 1 && ceil_div(job.n, panels * path.columns) * ceil_div(height, CHUNK) < 4 * job.threads) panels /= 2;
    return panels;
}

// job: settled
static int run(const kt_fp8_job& job, const Path& path) {
    Work work(job, path);
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

#if defined(KT_HAS_AMX)

// A product in tiles. first: of the rows of x at hand.
struct TileWork : Shared {
    kt_fp8_job job;
    amx::Inputs in{};
    int64_t panels = 1;
    uint8_t* odd = nullptr;  // one a panel, see amx::multiply

    explicit TileWork(const kt_fp8_job& given) : job(given) {}
};

static void pack_lines(void* context) {
    TileWork& work = *static_cast<TileWork*>(context);
    const KeepSubnormals mode;
    float* line = scratch_of(work, work.job.k);
    if (!line) return;
    for (int64_t row; (row = work.next++) < work.in.row_tiles() * amx::EDGE;) amx::pack_row(work.job, work.in, row, line);
}

constexpr int64_t PACKED_AT_ONCE = 1024;  // columns of one tile of rows

static void pack_tiles(void* context) {
    TileWork& work = *static_cast<TileWork*>(context);
    const int64_t across = ceil_div(work.in.depth, PACKED_AT_ONCE);
    for (int64_t part; (part = work.next++) < work.in.row_tiles() * across;) {
        const int64_t start = part % across * PACKED_AT_ONCE;
        amx::pack_tiles(work.in, part / across, start, smaller(PACKED_AT_ONCE, work.in.depth - start));
    }
}

static void multiply_tiles(void* context) {
    TileWork& work = *static_cast<TileWork*>(context);
    const KeepSubnormals mode;
    float* scratch = scratch_of(work, amx::scratch_floats(work.in, work.panels));
    if (!scratch) return;
    const amx::Tiles tiles;
    const int64_t parts = ceil_div(work.job.n, work.panels * amx::HIGH);
    for (int64_t first, count; take_parts(work, parts, work.in.rows, first, count);) {
        for (int64_t part = first; part < first + count; ++part) {
            const int64_t panel = part * work.panels;
            amx::multiply(work.job, work.in, panel * amx::HIGH, work.panels, scratch, work.odd + panel);
        }
    }
}

// Up to HEIGHT rows: those that are odd, and then odd columns for all of them, are computed on the other path.
static int multiply_in_tiles(TileWork& work, const Path& path) {
    const kt_fp8_job& job = work.job;
    const amx::Inputs& in = work.in;
    const int64_t lines = in.row_tiles() * amx::EDGE;
    share(work, pack_lines, lines, in.rows * job.k);
    if (work.failed) return KT_NO_MEMORY;
    if (std::find(in.odd, in.odd + in.rows, 0) == in.odd + in.rows) return run(rows_of(job, in.first, in.rows), path);
    share(work, pack_tiles, in.row_tiles() * ceil_div(in.depth, PACKED_AT_ONCE), lines * job.k);
    share(work, multiply_tiles, ceil_div(job.n, work.panels * amx::HIGH), job.n * job.k);
    int answer = work.failed ? KT_NO_MEMORY : KT_OK;
    for (int64_t row = 0, end; row < in.rows && answer == KT_OK; row = end) {
        end = std::find(in.odd + row, in.odd + in.rows, 1 - in.odd[row]) - in.odd;
        if (in.odd[row]) answer = run(rows_of(job, in.first + row, end - row), path);
    }
    for (int64_t n = 0; n < job.n && answer == KT_OK; n += amx::HIGH) {
        if (!work.odd[n / amx::HIGH]) continue;
        answer = run(columns_of(rows_of(job, in.first, in.rows), n, smaller(amx::HIGH, job.n - n)), path);
    }
    return answer;
}

// job: settled
static int run_in_tiles(const kt_fp8_job& job, const Path& path) {
    TileWork work(job);
    amx::Inputs& in = work.in;
    const int64_t height = ceil_div(smaller(job.m, HEIGHT), amx::EDGE) * amx::EDGE;
    in.pieces = amx::pieces_of(job), in.depth = ceil_div(job.k, amx::STEP) * amx::STEP;
    in.spans = amx::has_spans(job) ? ceil_div(job.k, amx::SPAN) : 1;
    const int64_t numbers = height * in.depth * in.pieces;
    float* const memory = tile_memory.get(numbers + height * in.spans);
    if (!memory && height) return KT_NO_MEMORY;
    in.tiles = reinterpret_cast<uint16_t*>(memory), in.lines = in.tiles + numbers;
    in.scales = memory + numbers;
    std::vector<uint8_t> odd_rows(height), odd_panels(ceil_div(job.n, amx::HIGH));
    in.odd = odd_rows.data(), work.odd = odd_panels.data();
    for (work.panels = job.m > LONG_RUNS ? 8 : 1; work.panels > 1; work.panels /= 2) {
        if (ceil_div(job.n, work.panels * amx::HIGH) >= 4 * job.threads) break;
    }
    int answer = KT_OK;
    for (in.first = 0; in.first < job.m && answer == KT_OK; in.first += in.rows) {
        in.rows = smaller(height, job.m - in.first);
        answer = multiply_in_tiles(work, path);
    }
    return answer;
}

#endif

}  // namespace kt

extern "C" {

__attribute__((visibility("default"))) int kt_fp8_linear(const kt_fp8_job* job) {
    const kt::Path* path = kt::choose(job->path);
    if (!path) return KT_NO_SUCH_PATH;
    try {
        bool failed = false;
        const kt_fp8_job settled = kt::settled(*job, *path, failed);
        if (failed) return KT_NO_MEMORY;
#if defined(KT_HAS_AMX)
        if (job->path == KT_PATH_AMX && kt::amx::takes(settled)) return kt::run_in_tiles(settled, *path);
#endif
        return kt::run(settled, *path);
    } catch (const std::bad_alloc&) {
        return KT_NO_MEMORY;
    }
}

// 1 when this machine can run the path (KT_PATH_*), else 0.
__attribute__((visibility("default"))) int kt_fp8_has_path(int32_t path) { return kt::choose(path) != nullptr; }

// Bytes of kt_fp8_job, so that the caller can see that it describes the same structure.
__attribute__((visibility("default"))) int64_t kt_fp8_job_bytes() { return sizeof(kt_fp8_job); }

}  // extern "C"

// How the work of one product is shared among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cpu_fp8_job.h"
#include "cpu_threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kt {

// Sums use subnormal numbers on every thread of x86, whatever the caller's thread is set to; elsewhere as that is set.
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

inline thread_local Buffer scratch_memory, packed_memory, tile_memory;

// What threads share: the next part, and whether one of them found no memory.
struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
};

inline float* scratch_of(Shared& work, int64_t floats) {
    float* scratch = scratch_memory.get(floats);
    if (!scratch) work.failed = true;
    return scratch;
}

// For a few rows, shares of what is left: long runs of memory at first, single parts at the end. For more rows one part of
// the columns of one chunk of rows, all of a chunk before the next one.
template <typename Work>
bool take_parts(Work& work, int64_t parts, int64_t rows, int64_t& first, int64_t& count) {
    first = work.next;
    do {
        if (first >= parts) return false;
        const int64_t share = rows > LONG_RUNS ? 1 : (parts - first) / (2 * std::max(1, work.job.threads));
        count = std::max<int64_t>(1, share);
    } while (!work.next.compare_exchange_weak(first, first + count));
    return true;
}

// Sharing is worth a second thread, which may have to be woken, only from about 100,000 steps on.
template <typename Work>
void share(Work& work, Pool::Body body, int64_t parts, int64_t steps) {
    const int64_t threads = steps < 100000 ? 1 : smaller(work.job.threads, parts);
    work.next = 0;
    pool().run(static_cast<int>(threads), body, &work);
}

}  // namespace kt

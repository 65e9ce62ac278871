// A weight's scales along k, one for each block of k, as the threads that multiply need them.
//
// kAhead: read before they are needed, 32 blocks at a time, one in each lane of a warp. Read where it is needed, the first
// one of each cache line holds the products for a latency of the memory, which is busy then. 8192 x 28672, W8A16, one row:
// 53.6 instead of 55.8 us, 10240 x 5120 13.7 instead of 15.2.
// Else: read where they are needed. From 64 rows of the input on products take so long that they hide it.
#pragma once

template <bool kAhead>
struct ScaleRun {
  const float* from;
  int count, lane;
  float now, next;  // of blocks `lane` and `lane` + 32 from the last multiple of 32 on

  // Of `count` blocks of k, at least one. May come before wait_for_previous(): scales are in memory as long as the weight.
  __device__ __forceinline__ ScaleRun(const float* from, int count) : from(from), count(count), lane(threadIdx.x % 32) {
    if constexpr (kAhead) now = read(lane), next = read(lane + 32);
  }

  // That of block i, by all lanes of a warp together, for 0, 1, 2 ... in turn.
  __device__ __forceinline__ float of(int i) {
    if constexpr (!kAhead) return __ldg(from + i);
    if (i % 32 == 0 && i > 0) now = next, next = read(i + 32 + lane);
    return __shfl_sync(0xffffffff, now, i % 32);
  }

  // volatile: stays where it is. Without a branch, in which lanes would part: behind one the compiler takes descriptors of
  // tiles for different in each lane, and every product waits for its own.
  __device__ __forceinline__ float read(int i) const {
    float scale;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(scale) : "l"(from + min(i, count - 1)));
    return scale;
  }
};

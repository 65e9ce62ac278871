// CUDA's words on a CPU: a block of threads is that many threads of the system, so that a kernel of csrc/cuda runs in a
// test as it is written. Blocks run one after another. Shared memory starts as NaN codes.
#pragma once
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes)
#define __launch_bounds__(...)

struct Index {
  unsigned x, y, z;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline float __ldg(const float* from) { return *from; }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i) found |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return found;
}

static thread_local Index threadIdx;
static Index blockIdx, gridDim;
alignas(128) char shared[232448];

// What the lanes of a warp show each other.
struct Warp {
  pthread_barrier_t barrier;
  uint32_t word[32][8];
};
static std::vector<Warp> warps;
static pthread_barrier_t whole;

inline Warp& warp_of_thread() { return warps[threadIdx.x / 32]; }
inline void wait(pthread_barrier_t& barrier) { pthread_barrier_wait(&barrier); }
inline void __syncthreads() { wait(whole); }
inline void __syncwarp() { wait(warp_of_thread().barrier); }

template <class Kernel>
void launch(int across, int up, int threads, const Kernel& kernel, int deep = 1) {
  gridDim = {static_cast<unsigned>(across), static_cast<unsigned>(up), static_cast<unsigned>(deep)};
  warps = std::vector<Warp>(threads / 32);
  for (Warp& warp : warps) pthread_barrier_init(&warp.barrier, nullptr, 32);
  pthread_barrier_init(&whole, nullptr, threads);
  for (unsigned i = 0; i < gridDim.x * gridDim.y * gridDim.z; ++i) {
    blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
    memset(shared, 0xff, sizeof shared);
    std::vector<std::thread> block;
    for (int i = 0; i < threads; ++i)
      block.emplace_back([&kernel, i] {
        threadIdx = {static_cast<unsigned>(i), 0};
        kernel();
      });
    for (std::thread& thread : block) thread.join();
  }
}

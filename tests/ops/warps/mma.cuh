// The functions of csrc/include/mma.cuh on a CPU, from the layouts in the PTX manual and not from that header.
//
// With `late` an asynchronous copy lands at the wait that guarantees it, at the last moment; without it, at once. A kernel
// must be right either way: the first finds a missing wait, the second a stage that is filled while it is read.
#pragma once
#include <bit>
#include <deque>
#include <mutex>

#include "block.h"

inline uint32_t shared_offset(const void* pointer) { return static_cast<uint32_t>(static_cast<const char*>(pointer) - shared); }

static bool late = false;

struct Copy {
  uint32_t to;
  const void* from;
  int bytes, size;
};
static thread_local std::deque<std::vector<Copy>> groups;
static thread_local std::vector<Copy> open_group;

inline void land(const Copy& copy) {
  memset(shared + copy.to, 0, copy.size);
  memcpy(shared + copy.to, copy.from, copy.bytes);
}
inline void copy_any(const Copy& copy) {
  if (copy.to % copy.size || reinterpret_cast<uintptr_t>(copy.from) % copy.size) abort();
  if (copy.to + copy.size > sizeof shared) abort();
  if (late) open_group.push_back(copy);
  else land(copy);
}
inline void copy_16(uint32_t to, const void* from, int bytes) { copy_any({to, from, bytes, 16}); }
inline void copy_4(uint32_t to, const void* from) { copy_any({to, from, 4, 4}); }
inline void copy_commit() { groups.push_back(open_group), open_group.clear(); }
template <int kPending>
void copy_wait() {
  for (; groups.size() > kPending; groups.pop_front())
    for (const Copy& copy : groups.front()) land(copy);
}

// ldmatrix: lane 8 i + r gives the address of row r of matrix i; every lane gets 4 bytes of each matrix.
inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  const int lane = threadIdx.x % 32;
  Warp& warp = warp_of_thread();
  if (address % 16) abort();
  warp.word[lane][0] = address;
  __syncwarp();
  for (int i = 0; i < 4; ++i) memcpy(&r[i], shared + warp.word[8 * i + lane / 4][0] + lane % 4 * 4, 4);
  __syncwarp();
}

inline float of_e4m3(unsigned char code) {
  const int exponent = code >> 3 & 15, digits = code & 7;
  if ((code & 127) == 127) return NAN;
  const float size = exponent ? ldexpf(8 + digits, exponent - 10) : ldexpf(digits, -9);
  return code & 128 ? -size : size;
}

// mma.m16n8k32: element i of a: row g (+ 8 in 4 to 7 and 12 to 15), column 4 t + i % 4 (+ 16 from 8 on);
// element i of b: row 4 t + i % 4 (+ 16 from 4 on), column g; element i of d: row g (+ 8 from 2 on), column 2 t + i % 2.
inline void multiply_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const int lane = threadIdx.x % 32;
  Warp& warp = warp_of_thread();
  for (int i = 0; i < 4; ++i) warp.word[lane][i] = a[i];
  warp.word[lane][4] = b0, warp.word[lane][5] = b1;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double total = d[i];
    for (int k = 0; k < 32; ++k) {
      const uint32_t left = warp.word[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2];
      const uint32_t right = warp.word[column * 4 + k % 16 / 4][4 + k / 16];
      total += static_cast<double>(of_e4m3(left >> k % 4 * 8)) * of_e4m3(right >> k % 4 * 8);
    }
    d[i] = static_cast<float>(total);
  }
  __syncwarp();
}

inline uint32_t load_4(uint32_t address) {
  if (address % 4) abort();
  uint32_t found;
  memcpy(&found, shared + address, sizeof found);
  return found;
}
inline uint4 load_16(uint32_t address) {
  if (address % 16) abort();
  uint4 found;
  memcpy(&found, shared + address, sizeof found);
  return found;
}

struct Some {
  std::once_flag made;
  pthread_barrier_t barrier;
};
template <int kThreads>
inline Some some[16];  // by their size: libraries loaded side by side share variables that are inline

template <int kThreads>
void sync_some(int barrier) {
  Some& one = some<kThreads>[barrier];
  std::call_once(one.made, [&] { pthread_barrier_init(&one.barrier, nullptr, kThreads); });
  wait(one.barrier);
}

inline float of_16(uint32_t bits, bool half) {
  bits &= 0xffff;
  if (!half) return std::bit_cast<float>(bits << 16);
  const int exponent = bits >> 10 & 31, digits = bits & 1023;
  if (exponent == 31) return NAN;
  const float size = exponent ? ldexpf(1024 + digits, exponent - 25) : ldexpf(digits, -24);
  return bits >> 15 ? -size : size;
}

// The product of two pairs of 16-bit numbers, which must be exact.
inline uint32_t multiplied(uint32_t left, uint32_t right, bool half) {
  uint32_t found = 0;
  for (int i = 0; i < 32; i += 16) {
    const float product = of_16(left >> i, half) * of_16(right >> i, half);
    uint32_t one = std::bit_cast<uint32_t>(product) >> 16;
    if (half) {
      int exponent;
      const float digits = frexpf(fabsf(product), &exponent);  // 0.5 to 1
      one = exponent > -14 ? (exponent + 14) << 10 | (static_cast<int>(digits * 2048) & 1023)
                           : static_cast<int>(fabsf(product) * 16777216.0f);
      one = product == 0 ? 0 : one;
      one |= signbit(product) ? 0x8000 : 0;
    }
    if (of_16(one, half) != product) abort();
    found |= one << i;
  }
  return found;
}

// mma.m16n8k16: element i of a: row g (+ 8 in 2, 3, 6 and 7), column 2 t + i % 2 (+ 8 from 4 on);
// element i of b: row 2 t + i % 2 (+ 8 from 2 on), column g; element i of d as above.
template <bool kHalf>
void multiply_16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  const int lane = threadIdx.x % 32;
  Warp& warp = warp_of_thread();
  for (int i = 0; i < 4; ++i) warp.word[lane][i] = a[i];
  warp.word[lane][4] = b0, warp.word[lane][5] = b1;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double total = d[i];
    for (int k = 0; k < 16; ++k) {
      const uint32_t left = warp.word[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      const uint32_t right = warp.word[column * 4 + k % 8 / 2][4 + k / 8];
      total += static_cast<double>(of_16(left >> k % 2 * 16, kHalf)) * of_16(right >> k % 2 * 16, kHalf);
    }
    d[i] = static_cast<float>(total);
  }
  __syncwarp();
}

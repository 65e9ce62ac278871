// The functions of csrc/include/numbers.cuh on a CPU, and CUDA's own that the quantizers call, written from their manuals.
#pragma once
#include <bit>

#include "block.h"

#undef __shared__
#define __shared__ static  // blocks run one after another, and their threads share what is static

static Index blockDim;

inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }

inline uint32_t __shfl_xor_sync(uint32_t mask, uint32_t word, int other) {
  const int lane = threadIdx.x % 32;
  Warp& warp = warp_of_thread();
  if (mask != 0xffffffffu) abort();
  warp.word[lane][0] = word;
  __syncwarp();
  const uint32_t found = warp.word[lane ^ other][0];
  __syncwarp();
  return found;
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t word) {
  for (int other = 16; other > 0; other /= 2) word = max(word, __shfl_xor_sync(mask, word, other));
  return word;
}

inline float __shfl_sync(uint32_t mask, float number, int lane) {
  Warp& warp = warp_of_thread();
  if (mask != 0xffffffffu || lane < 0 || lane > 31) abort();
  memcpy(&warp.word[threadIdx.x % 32][0], &number, 4);
  __syncwarp();
  memcpy(&number, &warp.word[lane][0], 4);
  __syncwarp();
  return number;
}
inline bool __any_sync(uint32_t mask, bool one) { return __reduce_max_sync(mask, one) != 0; }

inline float of_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, digits = bits & 1023;
  const float size = exponent == 31 ? (digits ? NAN : INFINITY)
                     : exponent     ? ldexpf(1024 + digits, exponent - 25)
                                    : ldexpf(digits, -24);
  return bits >> 15 ? -size : size;
}

template <bool kHalf>
uint32_t larger_16(uint32_t a, uint32_t b) {
  constexpr uint32_t infinity = kHalf ? 0x7c00 : 0x7f80;
  uint32_t found = 0;
  for (int i = 0; i < 32; i += 16) {
    const uint32_t one = a >> i & 0xffff, other = b >> i & 0xffff;
    if ((one | other) & 0x8000) abort();  // the quantizers ask for magnitudes alone
    found |= (one > infinity || other > infinity ? 0x7fff : max(one, other)) << i;
  }
  return found;
}

inline float of_e4m3(int code) {
  return code >> 3 ? ldexpf(8 + code % 8, (code >> 3) - 10) : ldexpf(code, -9);
}

inline uint32_t encode_one(float x) {
  const float size = fabsf(x);
  int code = 0;
  if (size != size) return 0x7f;
  while (code < 0x7e && of_e4m3(code + 1) <= size) ++code;
  if (code < 0x7e) {
    const float middle = (of_e4m3(code) + of_e4m3(code + 1)) / 2;
    code += size > middle || (size == middle && code % 2);
  }
  return code | (signbit(x) ? 0x80 : 0);
}
inline uint32_t encode(float low, float high) { return encode_one(low) | encode_one(high) << 8; }

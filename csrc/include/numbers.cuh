// Conversions between formats of numbers, and the larger of two, that are instructions of the chip. From SM89 on.
#pragma once

#ifdef __CUDACC_RTC__
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long;
#else
#include <stdint.h>
#endif

__device__ __forceinline__ float of_f16(uint16_t bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}

// The larger of two f16 (kHalf) or bf16 in each half of a word; NaN if one is NaN.
template <bool kHalf>
__device__ __forceinline__ uint32_t larger_16(uint32_t a, uint32_t b) {
  uint32_t out;
  if constexpr (kHalf) asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  else asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// Two numbers as two e4m3 codes, the first in the low byte: to nearest even, saturated at 448; NaN becomes 0x7f.
__device__ __forceinline__ uint32_t encode(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

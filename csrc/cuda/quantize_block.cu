// Rows of 16- or 32-bit numbers to e4m3 codes with one float32 scale for each 128 columns (the last group may be short).
//
// A warp takes a group: 4 numbers a lane. Scales are written block by block, [ceil(k / 128), scale_stride], as the
// products of csrc/cuda read them. The bytes are those of ops/torch_fp8.py: scale = max(amax / 448, 2^-126), code =
// round(clamp(x / scale, +-448)), both IEEE divisions; NaN stays NaN.
//
// Compile-time: KT_IN (0 bf16, 1 f16, 2 f32). Any architecture from SM89 on.
#ifdef __CUDACC_RTC__
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long;
#else
#include <stdint.h>
#endif

#if KT_IN == 2
using In = float;
#else
using In = uint16_t;
#endif

__device__ __forceinline__ float widen(In value) {
#if KT_IN == 2
  return value;
#elif KT_IN == 1
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
#else
  return __uint_as_float(static_cast<uint32_t>(value) << 16);
#endif
}

// Two numbers as two codes, the first in the low byte; NaN becomes 0x7f.
__device__ __forceinline__ uint32_t encode(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

extern "C" __global__ void __launch_bounds__(256)
quantize_block(const In* x, uint32_t* codes, float* scales, int m, int k, int64_t x_stride, int scale_stride) {
  const int groups = (k + 127) / 128, lane = threadIdx.x % 32;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int row = static_cast<int>(unit / groups), group = static_cast<int>(unit % groups);
  if (row >= m) return;
  const int column = group * 128 + lane * 4;
  float value[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (column < k) {  // k is a multiple of 4
    const In* from = x + row * x_stride + column;
#if KT_IN == 2
    const float4 four = *reinterpret_cast<const float4*>(from);
    value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
#else
    const uint2 four = *reinterpret_cast<const uint2*>(from);
    value[0] = widen(static_cast<In>(four.x & 0xffff)), value[1] = widen(static_cast<In>(four.x >> 16));
    value[2] = widen(static_cast<In>(four.y & 0xffff)), value[3] = widen(static_cast<In>(four.y >> 16));
#endif
  }
  // As bits, magnitudes keep their order and NaN is the largest.
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = max(largest, __float_as_uint(value[i]) & 0x7fffffffu);
  largest = __reduce_max_sync(0xffffffffu, largest);
  float scale = __fdiv_rn(__uint_as_float(largest), 448.0f);
  if (scale < 1.17549435e-38f) scale = 1.17549435e-38f;  // false for NaN
  if (lane == 0) scales[static_cast<int64_t>(group) * scale_stride + row] = scale;
  if (column < k) {
    float ratio[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) ratio[i] = __fdiv_rn(value[i], scale);
    const uint32_t word = encode(ratio[0], ratio[1]) | encode(ratio[2], ratio[3]) << 16;
    codes[(static_cast<int64_t>(row) * k + column) / 4] = word;
  }
}

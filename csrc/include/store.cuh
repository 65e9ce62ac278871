// Rounding float32 sums once to the output type. KT_OUT names it: 0 bf16, 1 f16, 2 f32.
#pragma once

#if KT_OUT == 2
using Out = float;
#else
using Out = unsigned short;
#endif

// Two neighbours of a row as one word; only for 16-bit outputs.
__device__ __forceinline__ unsigned int pack_pair(float low, float high) {
  unsigned int word;
#if KT_OUT == 1
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
#endif
  return word;
}

__device__ __forceinline__ void store_one(Out* to, float value) {
#if KT_OUT == 2
  *to = value;
#else
  *to = static_cast<unsigned short>(pack_pair(value, 0.0f) & 0xffff);
#endif
}

// Four neighbours of a row; `to` is aligned to their size.
__device__ __forceinline__ void store_four(Out* to, float4 v) {
#if KT_OUT == 2
  *reinterpret_cast<float4*>(to) = v;
#else
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(v.x, v.y), pack_pair(v.z, v.w));
#endif
}

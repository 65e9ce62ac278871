// What the input quantizers share: numbers by the vector, the largest magnitude, exact division by a scale, codes.
// Wants numbers.cuh before it. No lambdas: NVRTC 13.0 takes none that is generic.
//
// Compile-time: KT_IN (0 bf16, 1 f16, 2 f32), KT_WIDTH (numbers of a vector: 8, 4 or 1; 4 or 1 for f32).
#pragma once

#if KT_IN == 2
using In = float;
#else
using In = uint16_t;
#endif

constexpr int kWidth = KT_WIDTH, kBytes = kWidth * sizeof(In), kWords = (kBytes + 3) / 4;
constexpr float kLargest = 448.0f, kSmallestScale = 1.17549435e-38f;  // of e4m3; 2^-126
static_assert(kBytes <= 16 && (kWidth == 1 || kWidth == 4 || kWidth == 8), "a vector is one load");

// kWidth numbers of a row as they lie in memory.
struct Vector {
  uint32_t word[kWords];

  __device__ __forceinline__ float number(int i) const {
#if KT_IN == 2
    return __uint_as_float(word[i]);
#elif KT_IN == 1
    return of_f16(static_cast<uint16_t>(word[i / 2] >> (i % 2 * 16)));
#else
    return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
#endif
  }
};

// `from` is aligned to the vector; without `there` it is not read, and the numbers are 0.
__device__ __forceinline__ Vector load(const In* from, bool there) {
  Vector out = {};
  if (!there) return out;
  if constexpr (kBytes == 16) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < kWords; ++i) out.word[i] = words[i];
  } else if constexpr (kBytes == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    out.word[0] = v.x, out.word[kWords - 1] = v.y;
  } else if constexpr (kBytes == 4) {
    out.word[0] = *reinterpret_cast<const uint32_t*>(from);
  } else {
    out.word[0] = *reinterpret_cast<const uint16_t*>(from);
  }
  return out;
}

// The larger magnitudes of two words, NaN above all: of two 16-bit numbers, or of one float32 as bits.
__device__ __forceinline__ uint32_t larger(uint32_t magnitudes, uint32_t word) {
#if KT_IN == 2
  return max(magnitudes, word & 0x7fffffffu);
#else
  return larger_16<KT_IN == 1>(magnitudes, word & 0x7fff7fffu);
#endif
}

__device__ __forceinline__ uint32_t larger(uint32_t magnitudes, const Vector& vector) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) magnitudes = larger(magnitudes, vector.word[i]);
  return magnitudes;
}

// What `larger` gathered as the bits of one float32, in which order magnitudes keep their order and NaN is the largest.
__device__ __forceinline__ uint32_t float_bits(uint32_t magnitudes) {
#if KT_IN == 2
  return magnitudes;
#elif KT_IN == 1
  const float low = of_f16(static_cast<uint16_t>(magnitudes)), high = of_f16(static_cast<uint16_t>(magnitudes >> 16));
  return max(__float_as_uint(low), __float_as_uint(high));
#else
  return max(magnitudes << 16, magnitudes & 0xffff0000u);
#endif
}

// The largest bits of a block of threads, for all of them; `room` holds 32 numbers and is free again after the next
// barrier.
__device__ __forceinline__ uint32_t largest_of_block(uint32_t bits, uint32_t* room) {
  const int warps = (blockDim.x + 31) / 32, lane = threadIdx.x % 32;
  bits = __reduce_max_sync(0xffffffffu, bits);
  if (lane == 0) room[threadIdx.x / 32] = bits;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, lane < warps ? room[lane] : 0u);
}

// max(amax / 448, 2^-126), at most *upper if there is one; NaN stays NaN.
__device__ __forceinline__ float scale_of(uint32_t bits, const float* upper) {
  float scale = __fdiv_rn(__uint_as_float(bits), kLargest);
  if (scale < kSmallestScale) scale = kSmallestScale;
  if (upper == nullptr) return scale;
  const float limit = *upper;
  return scale <= limit || scale != scale ? scale : limit;
}

// The largest bits of kRows neighbouring rows, of each of which kLanes lanes hold a part: lanes share the rows out, and
// those of row i are with the kLanes / kRows of them from i * (kLanes / kRows) on.
template <int kLanes, int kRows>
__device__ __forceinline__ uint32_t largest_of_rows(uint32_t (&bits)[kRows]) {
  static_assert(kLanes % kRows == 0, "each lane has one row");
  int rows = kRows;
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    const bool upper = (threadIdx.x & other) != 0;
    const int kept = rows > 1 ? rows / 2 : 1;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      const uint32_t given = rows > 1 && !upper ? bits[i + rows / 2] : bits[i];
      const uint32_t own = rows > 1 && upper ? bits[i + rows / 2] : bits[i];
      bits[i] = max(own, __shfl_xor_sync(0xffffffffu, given, other));
    }
    rows = kept;
  }
  return bits[0];
}

// Division by one scale many times, each quotient rounded as IEEE division rounds it wherever that can change a code.
//
// With inverse = round(1 / s) and rest = what inverse lacks, x * inverse + x * rest is within one unit in the last place
// of x / s, and a step of Newton's method from there rounds correctly (Markstein 1990). Remainders must be exact: s from
// 2^-60 to 2^60 and quotients from 2^-11 on, smaller ones being 0 as a code. Other scales are `plain`, for real division.
struct Divisor {
  float scale, inverse, rest;
  bool plain;

  __device__ __forceinline__ Divisor(float s, float inverse, bool plain)
      : scale(s), inverse(inverse), rest(fmaf(-s, inverse, 1.0f) * inverse), plain(plain) {}
  __device__ __forceinline__ explicit Divisor(float s)
      : Divisor(s, __frcp_rn(s), !(s >= 8.67361738e-19f && s <= 1.15292150e+18f)) {}

  // That of another lane, where none is plain.
  __device__ __forceinline__ Divisor of_lane(int lane) const {
    return {__shfl_sync(0xffffffffu, scale, lane), __shfl_sync(0xffffffffu, inverse, lane), false};
  }

  // kBounded promises that s was made of the largest |x|, so that x / s is at most 448.
  //
  // For numbers of 16 bits the step may start from x * inverse, 1.5 units off: what it gives can be wrong only where x / s
  // is within 2^-23 units of half way between two floats. A code depends on that where one of the two is half way between
  // codes, an odd number T of at most 5 bits times a power of two; with s as an integer S of 24 bits, S * T is then at
  // most 15 off a multiple of 2^17 (x has 11 bits), within 3 * T of which S * T would have to be as well: that leaves T = 1
  // and S = 2^24 - 1, which no largest |x| / 448 is. tests/ops/test_cuda_quantize.py tries them all.
  template <bool kBounded>
  __device__ __forceinline__ float divide(float x) const {
    if constexpr (kBounded && sizeof(In) == 2) {
      const float near = x * inverse;
      return fmaf(-fmaf(scale, near, -x), inverse, near);  // in this order -0 stays -0
    }
    const float near = fmaf(x, inverse, x * rest);
    const float better = fmaf(fmaf(-scale, near, x), inverse, near);
    if constexpr (kBounded) return copysignf(better, x);  // the sums above lose the sign of zero
    return fabsf(near) < 512.0f ? copysignf(better, x) : x * inverse;  // infinity and NaN go on as such
  }
};

// The codes of a vector; `to` is aligned to kWidth bytes. ratio.of gives a number divided by its scale.
template <typename Ratio>
__device__ __forceinline__ void store_codes(uint8_t* to, const Vector& vector, const Ratio& ratio) {
  if constexpr (kWidth == 1) {
    *to = static_cast<uint8_t>(encode(ratio.of(vector.number(0)), 0.0f));
  } else {
    uint32_t word[kWidth < 4 ? 1 : kWidth / 4];
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const uint32_t low = encode(ratio.of(vector.number(i)), ratio.of(vector.number(i + 1)));
      const uint32_t high = encode(ratio.of(vector.number(i + 2)), ratio.of(vector.number(i + 3)));
      word[i / 4] = low | high << 16;
    }
    if constexpr (kWidth == 8) *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[kWidth == 8]);
    else *reinterpret_cast<uint32_t*>(to) = word[0];
  }
}

template <bool kBounded>
struct Quotient {
  const Divisor& divisor;

  __device__ __forceinline__ float of(float x) const { return divisor.divide<kBounded>(x); }
};

// The codes of a vector, each number divided by itself: for plain scales (NaN, infinity, below 2^-60). They are rare, so
// this is short and not fast: word by word, always the first one of a vector that moves up.
__device__ __forceinline__ void store_plainly(uint8_t* to, Vector vector, float scale) {
  constexpr int kEach = kWidth / kWords;  // numbers of a word
#pragma unroll 1
  for (int i = 0; i < kWidth; i += kEach) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) to[i + j] = static_cast<uint8_t>(encode(__fdiv_rn(vector.number(j), scale), 0.0f));
#pragma unroll
    for (int j = 0; j + 1 < kWords; ++j) vector.word[j] = vector.word[j + 1];
  }
}

template <bool kBounded>
__device__ __forceinline__ void store_quotients(uint8_t* to, const Vector& vector, const Divisor& divisor) {
  if (divisor.plain) store_plainly(to, vector, divisor.scale);
  else store_codes(to, vector, Quotient<kBounded>{divisor});
}

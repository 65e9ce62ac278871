// Codes of e4m3 as 16-bit values, exactly, by shifts, masks and one multiplication. KT_IN: 0 bf16, 1 f16.
//
// A packed code has its sign, then its low four bits, then the high three bits of its exponent (ops/fragment_tiles.py).
// In a bf16 these low and high bits belong into different bytes, so two masks, a shift and two permutations of bytes
// make two pairs of four codes; plain codes would take four masks and three shifts. A few rows of the input are
// multiplied no faster than the weight is widened: 1 to 10 % of such a product, together with what hopper_w8a16.cu
// widens early (H200, 2026-11-22). An f16 takes two masks and two shifts more than from plain codes.
#pragma once

// The packed codes in the upper bytes of the halves of `word`, and those in the lower bytes, as pairs of 16-bit values,
// times a power of two that the caller makes good: 2^-120 (bf16) or 2^-8 (f16). Exact, subnormal codes too; NaN codes
// are not (the packer refuses them).
struct Spread {
  uint32_t upper, lower;

#if KT_IN == 1
  static __device__ __forceinline__ uint32_t of(uint32_t word) {
    return (word & 0x80008000u) | ((word << 3) & 0x38003800u) | ((word >> 4) & 0x07800780u);
  }
  __device__ __forceinline__ explicit Spread(uint32_t word) : upper(of(word)), lower(of(word << 8)) {}
#else
  __device__ __forceinline__ explicit Spread(uint32_t word) {
    const uint32_t high = word & 0x87878787u, low = (word << 1) & 0xf0f0f0f0u;  // sign and exponent, the rest
    upper = __byte_perm(high, low, 0x3715), lower = __byte_perm(high, low, 0x2604);
  }
#endif
};

// The product of two pairs. Without a multiplication of bf16, adding -0 keeps the sign of a zero.
__device__ __forceinline__ uint32_t times(uint32_t pair, uint32_t factor) {
  uint32_t product;
#if KT_IN == 1
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(factor));
#elif KT_HAS_MUL_BF16
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(factor));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(pair), "r"(factor), "r"(0x80008000u));
#endif
  return product;
}

#if KT_IN == 1
constexpr uint32_t kWiden = 0x5c005c00u;  // 2^8 twice
#else
constexpr uint32_t kWiden = 0x7b807b80u;  // 2^120 twice
#endif

// 16 codes of a thread in the order of fragment_tiles.py, as the fragments of 16 rows and 32 columns: two instructions of
// four registers each. What the upper 8 rows and the lower 8 are multiplied by: kWiden, or a scale with it.
__device__ __forceinline__ void widen_16(uint32_t* fragments, uint4 codes, uint32_t upper, uint32_t lower) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Spread pairs(words[i]);
    fragments[2 * i] = times(pairs.upper, upper), fragments[2 * i + 1] = times(pairs.lower, lower);
  }
}

#if KT_IN == 0
// 2^(code - 127) with the power of two that makes `Spread` good, twice; code 16 to 134, between which every value of a
// weight times that power is a normal number of bf16.
__device__ __forceinline__ uint32_t widening_power(uint32_t code) { return (code + 120) * (0x10001u << 7); }
#endif

// 2^(code - 127) of e8m0 with that power of two, twice, for one of four codes of a word: the exponent field is code + 120
// (bf16) or code - 104 (f16), and the packer refuses codes for which it would leave 1 to 254, or 1 to 30. Two
// instructions: the code twice, then the bias and the shift at once.
__device__ __forceinline__ uint32_t widening_power_of(uint32_t word, int byte) {
  const uint32_t twice = __byte_perm(word, 0, 0x4040 + 0x101 * byte);
#if KT_IN == 1
  return twice * (1u << 10) - 0x00680068u * (1u << 10);
#else
  return twice * (1u << 7) + 0x00780078u * (1u << 7);
#endif
}

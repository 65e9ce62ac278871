// An input quantized with a scale for each row, or one for all, by all blocks of a launch together (shares.cuh): codes and
// scales are those of quantize_token.cu, and of quantize_tensor.cu. Wants hopper.cuh before it.
//
// k is a multiple of 16, and x and its rows begin at multiples of 16 bytes. Compile-time: KT_IN, KT_WIDTH (quantize.cuh; 8
// or 4).
#pragma once

#include "numbers.cuh"
#include "quantize.cuh"
#include "shares.cuh"

// kThreads threads of each block, from kFirst on: `warps` of them have a row, 1, 2, 4 or 8. Rows of x are `step` elements
// apart. The barrier is that of work_shares(); `room` is shared memory of two numbers a warp.
//
// given: the scale of all rows, or nullptr where it comes from their numbers, at most *upper unless that is nullptr. Each
// of `shares` has every so many rows; for a `common` scale as many shares before them look for the largest number.
template <int kThreads, int kFirst>
struct QuantizeRows {
  static constexpr int kWarps = kThreads / 32, kHeld = 8;  // vectors of a thread that stay in registers

  const In* x;
  const float *given, *upper;
  uint8_t* codes;
  float* scales;
  Counters* counters;
  uint32_t* room;
  int m, k, warps, shares;
  bool common;
  int64_t step;

  __device__ __forceinline__ void operator()(int share) const {
    const bool finding = common && share < shares;
    const int each = kWarps / warps, own = warp() / warps;
    const uint32_t of_all = common && !finding ? largest_of_all() : 0;
    uint32_t most = 0, *to = room;
#pragma unroll 1
    for (int first = (share < shares ? share : share - shares) * each; first < m; first += shares * each) {
      const int row = first + own, columns = row < m ? k : 0;
      const In* from = x + row * step;
      Vector held[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) held[i] = load(from + column(i), column(i) < columns);
      uint32_t bits = of_all;
      if (given == nullptr && (finding || !common)) {
        bits = largest_of_row(from, held, columns, to);
        to = room + (to == room ? kWarps : 0);  // one barrier a round is enough
      }
      if (finding) most = max(most, bits);
      else quantize(row, from, held, columns, bits);
    }
    if (finding && threadIdx.x % 32 == 0) atomicMax(&counters->largest, most);
  }

 private:
  static __device__ __forceinline__ int warp() { return (static_cast<int>(threadIdx.x) - kFirst) / 32; }

  __device__ __forceinline__ int column(int i) const {
    const int threads = warps * 32;
    return (i * threads + static_cast<int>(threadIdx.x) % threads) * kWidth;
  }

  __device__ __forceinline__ uint32_t largest_of_all() const {
    while (load_acquire(&counters->done) < shares) {}
    return load_relaxed(&counters->largest);
  }

  __device__ __forceinline__ uint32_t largest_of_row(const In* from, const Vector (&held)[kHeld], int columns,
                                                     uint32_t* to) const {
    uint32_t magnitudes = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) magnitudes = larger(magnitudes, held[i]);
#pragma unroll 4
    for (int i = kHeld; column(i) < columns; ++i) magnitudes = larger(magnitudes, load(from + column(i), true));
    uint32_t bits = __reduce_max_sync(0xffffffffu, float_bits(magnitudes));
    if (warps == 1) return bits;
    if (threadIdx.x % 32 == 0) to[warp()] = bits;
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
    for (int i = 0; i < warps; ++i) bits = max(bits, to[warp() / warps * warps + i]);
    return bits;
  }

  // A row whose scale is given, or that of `bits`.
  __device__ __forceinline__ void quantize(int row, const In* from, const Vector (&held)[kHeld], int columns,
                                           uint32_t bits) const {
    const float scale = given != nullptr ? *given : scale_of(bits, upper);
    if (column(0) == 0 && row < m) scales[row] = scale;
    const Divisor divisor(scale);
    uint8_t* to = codes + static_cast<int64_t>(row) * k;
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (column(i) < columns) store_quotients<false>(to + column(i), held[i], divisor);
#pragma unroll 1
    for (int i = kHeld; column(i) < columns; ++i)
      store_quotients<false>(to + column(i), load(from + column(i), true), divisor);
  }
};

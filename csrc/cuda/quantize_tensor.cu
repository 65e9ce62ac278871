// A matrix of numbers to e4m3 codes with one float32 scale for all: the bytes of ops/torch_fp8.quantize_static and
// quantize_tensor. The scale is given, or comes from the largest magnitude: then `find_largest` leaves one number a block
// in `partial`, and every block of `quantize_tensor` takes the largest of these, so no order of blocks changes a bit.
//
// A chunk is 256 * KT_EACH vectors of one row; `chunks` of them make a row. Compile-time: KT_IN, KT_WIDTH (quantize.cuh),
// KT_EACH. Any architecture from SM89 on.
#include "numbers.cuh"
#include "overlap.cuh"
#include "quantize.cuh"

constexpr int kEach = KT_EACH, kChunk = 256 * kEach * kWidth;

struct Chunk {
  int64_t row, first;  // first column of the thread's first vector

  __device__ __forceinline__ Chunk(int64_t index, int64_t chunks) {
    row = index / chunks;
    first = (index - row * chunks) * kChunk + threadIdx.x * kWidth;
  }

  __device__ __forceinline__ void fetch(const In* x, int64_t k, int64_t x_step, Vector (&vector)[kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t at = first + i * 256 * kWidth;
      vector[i] = load(x + row * x_step + at, at < k);
    }
  }
};

extern "C" __global__ void __launch_bounds__(256)
find_largest(const In* x, uint32_t* partial, int64_t total, int64_t chunks, int64_t k, int64_t x_step) {
  __shared__ uint32_t room[32];
  wait_for_previous();
  let_next_start();
  uint32_t magnitudes = 0;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    Vector vector[kEach];
    Chunk(index, chunks).fetch(x, k, x_step, vector);
#pragma unroll
    for (int i = 0; i < kEach; ++i) magnitudes = larger(magnitudes, vector[i]);
  }
  const uint32_t bits = largest_of_block(float_bits(magnitudes), room);
  if (threadIdx.x == 0) partial[blockIdx.x] = bits;
}

extern "C" __global__ void __launch_bounds__(256)
quantize_tensor(const In* x, const uint32_t* partial, const float* upper, const float* given, uint8_t* codes,
                float* scale_out, int count, int64_t chunks, int64_t k, int64_t x_step) {
  __shared__ uint32_t room[32];
  wait_for_previous();
  let_next_start();
  const Chunk chunk(blockIdx.x, chunks);
  Vector vector[kEach];
  chunk.fetch(x, k, x_step, vector);
  float scale;
  if (given != nullptr) {
    scale = *given;
  } else {
    uint32_t bits = 0;
    for (int i = threadIdx.x; i < count; i += 256) bits = max(bits, partial[i]);
    scale = scale_of(largest_of_block(bits, room), upper);
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale_out = scale;
  }
  const Divisor divisor(scale);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = chunk.first + i * 256 * kWidth;
    if (at < k) store_quotients<false>(codes + chunk.row * k + at, vector[i], divisor);
  }
}

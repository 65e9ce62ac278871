// Partial sums of a product whose k was split, added in order, so that the result is the same every time.
//
//   out[m, n] = round(sum over parts p of parts[p, m, n] + bias[n])
//
// A thread takes four neighbours of a row; n is a multiple of 4. Compile-time: KT_OUT. Any architecture.
#ifdef __CUDACC_RTC__
using int64_t = long;
#else
#include <stdint.h>
#endif
#include "store.cuh"

extern "C" __global__ void __launch_bounds__(256)
add_parts(const float* parts, const float* bias, Out* out, int m, int n, int count) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, size = static_cast<int64_t>(m) * n;
  if (unit * 4 >= size) return;
  float4 total = *reinterpret_cast<const float4*>(parts + unit * 4);
  for (int part = 1; part < count; ++part) {
    const float4 more = *reinterpret_cast<const float4*>(parts + part * size + unit * 4);
    total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
  }
  if (bias != nullptr) {
    const float* b = bias + unit * 4 % n;
    total.x += b[0], total.y += b[1], total.z += b[2], total.w += b[3];
  }
  store_four(out + unit * 4, total);
}

#include "mma.cuh"
#define asm(...) product = multiplied(pair, factor, KT_IN == 1)
#include "widen.cuh"
#undef asm
#include "marlin_w8a16.cu"

extern "C" void run(bool late_copies, int across, int up, int deep, const uint16_t* x, const char* w, const float* w_scale,
                    const float* bias, float* out, float* parts, int m, int n, int k, int stride) {
  late = late_copies;
  launch(across, up, kThreads, [=] { marlin_w8a16(x, w, w_scale, bias, out, parts, m, n, k, stride); }, deep);
}

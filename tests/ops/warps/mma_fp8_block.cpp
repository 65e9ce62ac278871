#include "mma_fp8_block.cu"

extern "C" void run(bool late_copies, int across, int up, const char* x, const float* x_scale, const char* w,
                    const float* w_scale, const float* bias, float* out, float* parts, int m, int n, int k, int stride) {
  late = late_copies;
  launch(across, up, kThreads,
         [=] { mma_fp8_block(x, x_scale, w, w_scale, bias, out, parts, m, n, k, stride); });
}

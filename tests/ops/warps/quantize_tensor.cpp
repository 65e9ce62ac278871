#include "quantize_tensor.cu"

extern "C" void find(int across, const In* x, uint32_t* partial, int64_t total, int64_t chunks, int64_t k, int64_t x_step) {
  blockDim = {256, 1, 1};
  launch(across, 1, 256, [=] { find_largest(x, partial, total, chunks, k, x_step); });
}

extern "C" void run(int across, const In* x, const uint32_t* partial, const float* upper, const float* given,
                    uint8_t* codes, float* scale_out, int count, int64_t chunks, int64_t k, int64_t x_step) {
  blockDim = {256, 1, 1};
  launch(across, 1, 256,
         [=] { quantize_tensor(x, partial, upper, given, codes, scale_out, count, chunks, k, x_step); });
}

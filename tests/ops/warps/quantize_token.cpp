#include "quantize_token.cu"

extern "C" void run(int across, int threads, const In* x, const float* upper, uint8_t* codes, float* scales, int64_t k,
                    int64_t x_step) {
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  launch(across, 1, threads, [=] { quantize_token(x, upper, codes, scales, k, x_step); });
}

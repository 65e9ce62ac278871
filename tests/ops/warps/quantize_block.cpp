#include "quantize_block.cu"

extern "C" void run(int across, const In* x, uint8_t* codes, Scale* scales, int m, int rows, int k, int64_t x_step,
                    int row_step, int group_step, uint32_t* cleared, int words) {
  launch(across, 1, 256,
         [=] { quantize_block(x, codes, scales, m, rows, k, x_step, row_step, group_step, cleared, words); });
}

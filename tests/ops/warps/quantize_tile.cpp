#include "numbers.cuh"

#include "quantize_tile.cuh"

// Tiles one after another in memory, of `rows` rows each; how often each is asked for and filled is counted.
struct Listed {
  uint8_t* codes;
  float* all_scales;
  int rows;
  int *asked, *done;

  uint8_t* tile(int i) const { return codes + static_cast<int64_t>(i) * rows * 128; }
  float* scales(int i) const { return all_scales + static_cast<int64_t>(i) * rows; }
  void empty(int i) const { count(asked[i]); }
  void filled(int i) const { count(done[i]); }

 private:
  static void count(int& times) {
    if (threadIdx.x % 32 == 0) ++times;  // the other lanes are threads too, and must not write
  }
};

// `across` warps one after another take kVectors reads each.
extern "C" int run(int across, const In* x, uint8_t* codes, float* scales, int rows, int* asked, int* done, int m, int k,
                   int64_t x_step) {
  const Rows input = {x, x_step, m, k, shift_of(m)};
  const Listed tiles = {codes, scales, rows, asked, done};
  launch(across, 1, 32, [=] {
    Vector vector[kVectors];
    const int read = static_cast<int>(blockIdx.x) * kVectors;
    input.get(vector, read);
    if (read < input.reads()) quantize_rows(tiles, input, vector, read);
  });
  return input.shift;
}

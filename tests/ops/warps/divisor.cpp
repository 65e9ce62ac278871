// Divisor of csrc/include/quantize.cuh with every scale that a 16-bit number makes, up to powers of two.
#include "numbers.cuh"
#include "quantize.cuh"

// Numbers of 16 bits have `digits` significant ones. For each largest one A and each X not above it, down to quotients
// that are codes of 0, of both signs: how many codes of X / scale(A) are not those of IEEE division; their number in all
// is left in `tried`. Powers of two cancel, so A stands for all of its digits.
extern "C" int run(int digits, int64_t* tried) {
  int wrong = 0;
  const int first = 1 << (digits - 1);
  *tried = 0;
  for (int largest = first; largest < 2 * first; ++largest) {
    const float scale = scale_of(__float_as_uint(static_cast<float>(largest)), nullptr);
    const Divisor divisor(scale);
    if (divisor.plain) return -1;
    for (int exponent = 0; exponent < 22; ++exponent) {
      for (int number = first; number < 2 * first; ++number) {
        if (exponent == 0 && number > largest) break;
        for (const float x : {ldexpf(number, -exponent), ldexpf(-number, -exponent)}) {
          const float found = divisor.divide<true>(x), stated = x / scale;
          wrong += found != stated && encode(found, 0.0f) != encode(stated, 0.0f);
          ++*tried;
        }
      }
    }
  }
  return wrong;
}

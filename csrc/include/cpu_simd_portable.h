// Four lanes in the compiler's own vectors: SSE2 on any x86-64, NEON on any arm64. Codes are widened through a table.
#pragma once

#include "cpu_formats.h"

namespace kt::portable {

#define KT_TARGET
#define KT_INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(16)));
constexpr int LANES = 4, ROWS = 3, COLUMNS = 4, FEW = 1;

inline Vec zero() { return Vec{}; }
inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec v) { *reinterpret_cast<Vec*>(to) = v; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

constexpr int STEP = 2 * LANES;  // codes that are widened at once
constexpr float UNIT = 1.0f;

struct Wide {
    Vec part[STEP / LANES];
};

inline Vec all(float value) { return Vec{value, value, value, value}; }

// values of STEP codes
inline Wide widen_step(const uint8_t* from) {
    const float* const value = E4M3.value;
    return Wide{{{value[from[0]], value[from[1]], value[from[2]], value[from[3]]},
                 {value[from[4]], value[from[5]], value[from[6]], value[from[7]]}}};
}

// to[i] = float32(value of codes[i] * scale); any alignment, any count
inline void widen(const uint8_t* codes, int count, float scale, float* to) {
    for (int i = 0; i < count; ++i) to[i] = E4M3.value[codes[i]] * scale;
}

}  // namespace kt::portable

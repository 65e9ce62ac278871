// Scalar conversions between float32 and the narrow formats: exact widening, round-to-nearest-even narrowing.
// Sources: OCP 8-bit floating point r1.0 (e4m3), OCP microscaling formats v1.0 (e8m0), IEEE 754-2019 (f16).
#pragma once

#include <cstdint>
#include <cstring>

namespace kt {

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

constexpr float E4M3_LARGEST = 448.0f;
constexpr float SMALLEST_SCALE = 0x1p-126f;

// e4m3: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f and 0xff are NaN, there is no infinity.
constexpr float e4m3_value(unsigned code) {
    const unsigned exponent = (code >> 3) & 15, mantissa = code & 7;
    if ((code & 0x7f) == 0x7f) return __builtin_nanf("");
    float value = exponent ? (8.0f + mantissa) : static_cast<float>(mantissa);
    for (unsigned e = exponent ? exponent : 1; e < 10; ++e) value *= 0.5f;
    for (unsigned e = 10; e < exponent; ++e) value *= 2.0f;
    return (code & 0x80) ? -value : value;
}

struct E4m3Table {
    float value[256];
    constexpr E4m3Table() : value() {
        for (unsigned code = 0; code < 256; ++code) value[code] = e4m3_value(code);
    }
};
inline constexpr E4m3Table E4M3{};

// The bf16 number, exact, of an e4m3 magnitude (a code without its sign).
constexpr unsigned e4m3_as_bf16(unsigned code) {
    if (code == 0x7f) return 0x7fc0u;
    if (code == 0) return 0;
    unsigned exponent = 120 + (code >> 3), mantissa = code & 7;  // the bias of bf16 is 120 above that of e4m3
    if (exponent == 120) {
        for (exponent = 121; mantissa < 8; mantissa *= 2) --exponent;
    }
    return exponent << 7 | (mantissa & 7) << 4;
}

// A scale times a power of two is exact, or infinite and then of no use; a power of 1 changes nothing.
constexpr bool usable(float scaled, float power) { return power == 1.0f || __builtin_fabsf(scaled) <= 0x1.fffffep127f; }

// e8m0: 2^(code - 127); 0xff is NaN; code 0 is the subnormal 2^-127.
inline float e8m0_value(uint8_t code) {
    if (code == 0xff) return from_bits(0x7fc00000u);
    return from_bits(code ? static_cast<uint32_t>(code) << 23 : 0x00400000u);
}

inline float bf16_value(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

inline float f16_value(uint16_t half) {
    const uint32_t magnitude = half & 0x7fffu, sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t finite = to_bits(from_bits(magnitude << 13) * 0x1p112f);
    return from_bits(sign | (magnitude >= 0x7c00u ? (0x7f800000u | (magnitude << 13)) : finite));
}

inline uint16_t bf16_code(float value) {
    const uint32_t bits = to_bits(value), rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return static_cast<uint16_t>((value != value ? (bits | 0x00400000u) : rounded) >> 16);
}

inline uint16_t f16_code(float value) {
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const uint32_t tiny = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);  // the unit of 0.5f is 2^-24
    uint32_t code = magnitude < 0x38800000u ? tiny : normal;
    code = magnitude >= 0x47800000u ? 0x7c00u : code;
    code = magnitude > 0x7f800000u ? 0x7e00u : code;
    return static_cast<uint16_t>(code | ((bits >> 16) & 0x8000u));
}

// The e4m3 number nearest to value (ties to even) after clamping to +-448, as a float; NaN stays NaN.
inline float e4m3_nearest(float value) {
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffffu;
    const float size = from_bits(magnitude);
    const float clamped = size > E4M3_LARGEST ? E4M3_LARGEST : size;
    const uint32_t c = to_bits(clamped);
    const float normal = from_bits((c + 0x7ffffu + ((c >> 20) & 1u)) & 0xfff00000u);
    const float tiny = (clamped + 16384.0f) - 16384.0f;  // the unit of 16384 is 2^-9, e4m3's smallest subnormal
    const uint32_t rounded = to_bits(clamped < 0x1p-6f ? tiny : normal) | (bits & 0x80000000u);
    return value != value ? value : from_bits(rounded);
}

// Shared scale of one MX block: floor(log2(amax)) - 8, where 8 is the exponent of 448; NaN and infinity give NaN.
inline float mx_scale(float amax) {
    const int exponent = static_cast<int>(to_bits(amax) >> 23);
    if (exponent == 255) return from_bits(0x7fc00000u);
    return e8m0_value(static_cast<uint8_t>(exponent > 8 ? exponent - 8 : 0));
}

// Scale of one FP8 group: at least 2^-126, at most upper; NaN of either gives NaN.
inline float fp8_scale(float amax, float upper) {
    float scale = amax / E4M3_LARGEST;
    if (scale < SMALLEST_SCALE) scale = SMALLEST_SCALE;
    return upper != upper || scale > upper ? upper : scale;
}

}  // namespace kt

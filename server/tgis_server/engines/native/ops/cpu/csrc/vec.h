// Vectors of float32 for the instruction set that the file is compiled for.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "core.h"

namespace tgis::TGIS_ISA {

#if defined(__AVX512F__)

using Vec = __m512;
using Ints = __m512i;
constexpr int kLanes = 16;
constexpr int kMaxRows = 12, kMaxVecs = 2;  // accumulators of a tile that fit in the registers

inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline __mmask16 first(int64_t n) { return n >= kLanes ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
inline Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store_first(float* p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
// Lanes [begin, end) of v; other lanes become `other`.
inline Vec keep(Vec v, int64_t begin, int64_t end, Vec other) {
  return _mm512_mask_mov_ps(other, first(end) & ~first(begin), v);
}
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec floor(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline Vec copy_sign(Vec magnitude, Vec sign) {  // magnitude must not be negative
  return _mm512_castsi512_ps(_mm512_or_si512(
      _mm512_castps_si512(magnitude), _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(0x80000000))));
}
inline Vec zero_below(Vec x, float limit, Vec v) {  // 0 where x is below the limit, else v
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(limit), _CMP_NLT_UQ), v);
}
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
inline float largest(Vec v) { return _mm512_reduce_max_ps(v); }
inline Vec iota() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline Vec power_of_two(Vec n) {  // n: whole numbers
  return _mm512_scalef_ps(set1(1.f), n);
}
inline Ints load_pairs(const void* p) { return _mm512_loadu_si512(p); }
inline Vec even(Ints pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline Vec odd(Ints pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000))); }
inline Vec load(const bf16* p) {
  __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline Vec load_first(const bf16* p, int64_t n) {
  __m256i raw = _mm256_maskz_loadu_epi16(first(n), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline __m256i to_bf16(Vec v) {  // to nearest, ties to even; a NaN stays one
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  __m512i bits = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
inline void store(bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v)); }
inline void store_first(bf16* p, Vec v, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(v)); }

#elif defined(__AVX2__) && defined(__FMA__)

using Vec = __m256;
using Ints = __m256i;
constexpr int kLanes = 8;
constexpr int kMaxRows = 4, kMaxVecs = 2;

inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > kLanes ? kLanes : int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline void store_first(float* p, Vec v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
inline Vec keep(Vec v, int64_t begin, int64_t end, Vec other) {
  __m256i mask = _mm256_andnot_si256(first(begin), first(end));
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(mask));
}
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(set1(-0.f), a); }
inline Vec floor(Vec a) { return _mm256_floor_ps(a); }
inline Vec copy_sign(Vec magnitude, Vec sign) { return _mm256_or_ps(magnitude, _mm256_and_ps(sign, set1(-0.f))); }
inline Vec zero_below(Vec x, float limit, Vec v) { return _mm256_and_ps(v, _mm256_cmp_ps(x, set1(limit), _CMP_NLT_UQ)); }
inline float sum(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline Vec iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
inline Vec power_of_two(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Ints load_pairs(const void* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Vec even(Ints pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline Vec odd(Ints pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000))); }
inline Vec load(const bf16* p) {
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vec load_first(const bf16* p, int64_t n) {
  bf16 part[kLanes] = {};
  std::memcpy(part, p, sizeof(bf16) * (n > kLanes ? kLanes : n < 0 ? 0 : n));
  return load(part);
}
inline void store(bf16* p, Vec v) {
  __m256i bits = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  rounded = _mm256_srli_epi32(rounded, 16);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store_first(bf16* p, Vec v, int64_t n) {
  bf16 part[kLanes];
  store(part, v);
  std::memcpy(p, part, sizeof(bf16) * (n > kLanes ? kLanes : n < 0 ? 0 : n));
}

#else
#error "no vectors for this instruction set"
#endif

inline Vec zero() { return set1(0.f); }

// e^x with a relative error of about 2e-7; 0 below -87.3, and at most e^88.3.
inline Vec exp(Vec exponent) {
  Vec x = max(set1(-87.3f), min(set1(88.3f), exponent));  // in this order of operands, a NaN stays one
  Vec n = floor(fma(x, set1(1.44269504f), set1(0.5f)));
  Vec r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return zero_below(exponent, -87.3f, fma(p, r * r, r + set1(1.f)) * power_of_two(n));
}

inline Vec tanh(Vec x) {
  Vec e = exp(abs(x) * set1(-2.f));
  return copy_sign((set1(1.f) - e) / (set1(1.f) + e), x);
}

// Abramowitz and Stegun, 7.1.26: an absolute error of at most 1.5e-7.
inline Vec erf(Vec x) {
  Vec a = abs(x);
  Vec t = set1(1.f) / fma(a, set1(0.3275911f), set1(1.f));
  Vec p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  return copy_sign(max(set1(1.f) - p * t * exp(-a * a), zero()), x);
}

}  // namespace tgis::TGIS_ISA

// Lanes that a comparison selects, as bits; and sums in float64.
#pragma once
#include "vec.h"

namespace tgis::TGIS_ISA {

using Bits = uint32_t;
constexpr Bits kAllLanes = (1u << kLanes) - 1;

inline Bits first_lanes(int64_t n) { return n >= kLanes ? kAllLanes : (1u << n) - 1; }

#if defined(__AVX512F__)

inline Bits greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Bits at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Bits equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline Vec select(Bits bits, Vec yes, Vec no) { return _mm512_mask_blend_ps(__mmask16(bits), no, yes); }
// Writes the selected lanes side by side, and arbitrary values up to a whole vector.
inline void compress(float* p, Vec v, Bits bits) { store(p, _mm512_maskz_compress_ps(__mmask16(bits), v)); }

struct Sum {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  void add(Vec v) {
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

#else

inline Bits greater(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline Bits at_least(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline Bits equal(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline Vec select(Bits bits, Vec yes, Vec no) {
  __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), lane), lane);
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(mask));
}
inline void compress(float* p, Vec v, Bits bits) {
  float lanes[kLanes];
  store(lanes, v);
  for (; bits; bits &= bits - 1) *p++ = lanes[__builtin_ctz(bits)];
}

struct Sum {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  void add(Vec v) {
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
  }
  double total() const {
    alignas(32) double x[4];
    _mm256_store_pd(x, _mm256_add_pd(low, high));
    return (x[0] + x[1]) + (x[2] + x[3]);
  }
};

#endif

}  // namespace tgis::TGIS_ISA

// The inner loop of linear layers and attention: a few rows times a panel of packed columns.
#pragma once
#include "vec.h"

namespace tgis::TGIS_ISA {

// How elements of type E are packed and multiplied. In a panel, `kStep` consecutive inputs of a column are neighbours,
// so that a vector holds as many inputs of each of kLanes columns.
template <class E> struct Packing;

template <> struct Packing<float> {
  using Input = float;
  static constexpr int kStep = 1;
  struct Columns {
    Vec v;
  };
  static Columns columns(const float* panel) { return {load(panel)}; }
  static Vec dot(Columns w, const float* x, Vec sum) { return fma(w.v, set1(*x), sum); }
  static Vec dot_last(Columns w, const float* x, Vec sum) { return dot(w, x, sum); }
};

#if defined(__AVX512BF16__) || defined(TGIS_EMULATE_BF16)

// Both factors stay in bfloat16, and the instruction adds two products in float32.
template <> struct Packing<bf16> {
  using Input = bf16;
  static constexpr int kStep = 2;
  struct Columns {
    Ints v;
  };
  static Columns columns(const bf16* panel) { return {load_pairs(panel)}; }
  static Vec dot_pair(Columns w, uint32_t pair, Vec sum) {
#if defined(TGIS_EMULATE_BF16)
    Ints x = _mm512_set1_epi32(pair);
    return fma(odd(w.v), odd(x), fma(even(w.v), even(x), sum));
#else
    return _mm512_dpbf16_ps(sum, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(pair));
#endif
  }
  static Vec dot(Columns w, const bf16* x, Vec sum) {
    uint32_t pair;
    std::memcpy(&pair, x, 4);
    return dot_pair(w, pair, sum);
  }
  static Vec dot_last(Columns w, const bf16* x, Vec sum) { return dot_pair(w, x->bits, sum); }
};

#else

// Columns are widened to float32 when they are read; inputs are float32.
template <> struct Packing<bf16> {
  using Input = float;
  static constexpr int kStep = 2;
  struct Columns {
    Vec even, odd;
  };
  static Columns columns(const bf16* panel) {
    Ints pairs = load_pairs(panel);
    return {even(pairs), odd(pairs)};
  }
  static Vec dot(Columns w, const float* x, Vec sum) { return fma(w.odd, set1(x[1]), fma(w.even, set1(x[0]), sum)); }
  static Vec dot_last(Columns w, const float* x, Vec sum) { return fma(w.even, set1(x[0]), sum); }
};

#endif

template <class E> using Input = typename Packing<E>::Input;

// sums[m][v] += x[m][0..num_inputs) times the kLanes columns at columns[v]. One step of a panel is `stride` elements after
// the one before; what lies `ahead` bytes further is prefetched (0: nothing). Each sum adds its products in the order of
// the inputs, so a row's results do not depend on the other rows.
template <class E, int kRows, int kVecs>
inline __attribute__((always_inline)) void multiply(Vec (&sums)[kRows][kVecs], const Input<E>* x, int64_t x_stride,
                                                    const E* const (&columns)[kVecs], int64_t stride,
                                                    int64_t num_inputs, int64_t ahead = 0) {
  using P = Packing<E>;
  constexpr int64_t kLine = 64 / sizeof(Input<E>), kInputsAhead = 5 * kLine;
  int64_t k = 0, at = 0;
  for (; k + P::kStep <= num_inputs; k += P::kStep, at += stride) {
    // Not into the first-level cache, all of whose outstanding misses would be waiting for memory.
    if (ahead)
      for (int v = 0; v < kVecs; ++v)
        _mm_prefetch(reinterpret_cast<const char*>(columns[v] + at) + ahead, _MM_HINT_T1);
    // Long inputs of several rows do not stay in the first-level cache.
    if (kRows > 1 && k % kLine == 0 && k + kInputsAhead < num_inputs)
      for (int m = 0; m < kRows; ++m)
        _mm_prefetch(reinterpret_cast<const char*>(x + m * x_stride + k + kInputsAhead), _MM_HINT_T0);
    typename P::Columns w[kVecs];
    for (int v = 0; v < kVecs; ++v) w[v] = P::columns(columns[v] + at);
    for (int m = 0; m < kRows; ++m)
      for (int v = 0; v < kVecs; ++v) sums[m][v] = P::dot(w[v], x + m * x_stride + k, sums[m][v]);
  }
  if (k < num_inputs)
    for (int m = 0; m < kRows; ++m)
      for (int v = 0; v < kVecs; ++v)
        sums[m][v] = P::dot_last(P::columns(columns[v] + at), x + m * x_stride + k, sums[m][v]);
}

// The same with neighbouring columns of one panel.
template <class E, int kRows, int kVecs>
inline __attribute__((always_inline)) void multiply(Vec (&sums)[kRows][kVecs], const Input<E>* x, int64_t x_stride,
                                                    const E* panel, int64_t stride, int64_t num_inputs,
                                                    int64_t ahead = 0) {
  const E* columns[kVecs];
  for (int v = 0; v < kVecs; ++v) columns[v] = panel + v * kLanes * Packing<E>::kStep;
  multiply<E, kRows, kVecs>(sums, x, x_stride, columns, stride, num_inputs, ahead);
}

// Calls f(std::integral_constant<int, n>, first row) for groups of rows that cover [0, num_rows).
template <class F> inline void for_row_groups(int64_t num_rows, F&& f) {
  int64_t m = 0;
  auto take = [&](auto n) {
    for (; m + n() <= num_rows; m += n()) f(n, m);
  };
  if constexpr (kMaxRows >= 12) take(std::integral_constant<int, 12>{});
  if constexpr (kMaxRows >= 8) take(std::integral_constant<int, 8>{});
  if constexpr (kMaxRows >= 6) take(std::integral_constant<int, 6>{});
  take(std::integral_constant<int, 4>{});
  take(std::integral_constant<int, 3>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

}  // namespace tgis::TGIS_ISA

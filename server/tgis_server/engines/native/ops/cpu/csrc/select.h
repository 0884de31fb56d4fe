// Where to cut a set of weighted keys, without sorting them.
#pragma once
#include <algorithm>
#include <vector>

#include "mask.h"

namespace tgis::TGIS_ISA {

// Room for whole vectors past the end.
inline float* room(std::vector<float>& v, int64_t n) {
  if (int64_t(v.size()) < n + kLanes) v.resize(n + kLanes);
  return v.data();
}

struct Cut {
  float border;    // the key at which the weights, added in descending order of keys, reach the target
  double before;   // the weight of all greater keys, less than the target
};

// Quickselect by weight. Each round splits the keys into those greater than a pivot, equal to it and smaller, and goes on
// with the part in which the target is reached. So ties cost no more than one round.
class Selection {
 public:
  float* keys(int64_t n) { return room(keys_, n); }
  float* weights(int64_t n) { return room(weights_, n); }

  // The first n keys and weights are used, and destroyed. If all weights together are less than the target, the border
  // is the smallest key.
  Cut cut(int64_t n, double target) {
    float *keys = keys_.data(), *weights = weights_.data();
    float* smaller = room(smaller_, n);
    float* smaller_weights = room(smaller_weights_, n);
    Cut cut{keys[0], 0.0};
    while (n > 0) {
      float pivot = choose_pivot(keys, n);
      Sum above, equal;
      int64_t num_above = 0, num_below = 0;
      for (int64_t i = 0; i < n; i += kLanes) {
        Vec k = load(keys + i), w = load(weights + i), p = set1(pivot);
        Bits used = first_lanes(n - i);
        Bits is_above = greater(k, p) & used, is_below = greater(p, k) & used;
        above.add(select(is_above, w, zero()));
        equal.add(select(used & ~is_above & ~is_below, w, zero()));
        compress(keys + num_above, k, is_above);  // never overtakes the reading
        compress(weights + num_above, w, is_above);
        compress(smaller + num_below, k, is_below);
        compress(smaller_weights + num_below, w, is_below);
        num_above += __builtin_popcount(is_above);
        num_below += __builtin_popcount(is_below);
      }
      if (num_above > 0 && cut.before + above.total() >= target) {
        n = num_above;
        continue;
      }
      cut = {pivot, cut.before + above.total()};
      if (cut.before + equal.total() >= target || num_below == 0) break;
      cut.before += equal.total();
      std::swap(keys, smaller);
      std::swap(weights, smaller_weights);
      n = num_below;
    }
    return cut;
  }

 private:
  static float choose_pivot(const float* keys, int64_t n) {  // the median of some keys
    constexpr int kSamples = 9;
    float samples[kSamples];
    for (int i = 0; i < kSamples; ++i) samples[i] = keys[(2 * i + 1) * n / (2 * kSamples)];
    std::nth_element(samples, samples + kSamples / 2, samples + kSamples);
    return samples[kSamples / 2];
  }

  std::vector<float> keys_, weights_, smaller_, smaller_weights_;
};

}  // namespace tgis::TGIS_ISA

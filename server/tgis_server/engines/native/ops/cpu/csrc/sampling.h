// From a row of logits to a token and its details, in the order of steps that `engines/sampling/api.py` defines. Nothing
// is sorted: every cut is a selection, and most ids are dropped in one pass before it.
#pragma once
#include <limits>

#include "select.h"

namespace tgis::TGIS_ISA {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMaxScore = 1e30f;    // of penalized scores: stays finite when divided by a temperature
constexpr int64_t kSumBlock = 1024;   // scores with one partial sum
constexpr int64_t kGroup = 16;        // scores of which only the largest is compared at first

// Scores that are still possible: those of all ids or of some, in ascending order of ids.
struct Scores {
  float* values;
  float* ids;  // float32 has all integers up to 2^24; null: the index is the id
  int64_t size;
  int64_t id(int64_t i) const { return ids ? int64_t(ids[i]) : i; }
};

// Scores from index i on; -infinity after the last one.
inline Vec scores_at(const float* x, int64_t n, int64_t i) {
  return n - i >= kLanes ? load(x + i) : keep(load_first(x + i, n - i), 0, n - i, set1(-kInfinity));
}

struct Scan {
  float largest;
  bool is_finite;
};

inline Scan scan(const float* x, int64_t n) {
  constexpr int kChains = 4;  // independent, as each instruction takes several cycles
  Vec best[kChains], zeros[kChains];  // the latter become NaN with the first value that is not finite
  for (int c = 0; c < kChains; ++c) best[c] = set1(-kInfinity), zeros[c] = zero();
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
    for (int c = 0; c < kChains; ++c) {
      Vec v = load(x + i + c * kLanes);
      best[c] = max(best[c], v);
      zeros[c] = fma(v, zero(), zeros[c]);
    }
  for (; i < n; i += kLanes) {
    best[0] = max(best[0], scores_at(x, n, i));
    zeros[0] = fma(load_first(x + i, n - i), zero(), zeros[0]);
  }
  return {largest(max(max(best[0], best[1]), max(best[2], best[3]))),
          sum((zeros[0] + zeros[1]) + (zeros[2] + zeros[3])) == 0.f};
}

inline int64_t find(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i += kLanes)
    if (Bits hits = equal(load_first(x + i, n - i), set1(value)) & first_lanes(n - i)) return i + __builtin_ctz(hits);
  return 0;
}

// Proportional to the scores' probabilities, and 1 for `best`.
inline Vec weights(Vec scores, Vec best) {
  Vec d = scores - best;
  return select(at_least(d, set1(-87.f)), exp(d), zero());
}

inline double sum_weights(const float* x, int64_t n, float best) {
  Sum sum;
  for (int64_t i = 0; i < n; i += kLanes) sum.add(weights(scores_at(x, n, i), set1(best)));
  return sum.total();
}

// -- Masks and penalties, on all ids

inline void keep_allowed(float* x, int64_t n, const uint8_t* allowed) {
  constexpr int kBytes = kLanes / 8;
  for (int64_t i = 0; i < n; i += kLanes) {
    Bits bits = 0;
    std::memcpy(&bits, allowed + i / 8, std::min<int64_t>(kBytes, (n - i + 7) / 8));
    if (bits != kAllLanes) store_first(x + i, select(bits, load_first(x + i, n - i), set1(-kInfinity)), n - i);
  }
}

// A negative growth drops the ends.
inline void change_ends(float* x, const int64_t* end_ids, int64_t num_ends, float growth) {
  for (int64_t i = 0; i < num_ends; ++i) {
    float& end = x[end_ids[i]];
    if (growth < 0.f) end = -kInfinity;
    else if (end > -kInfinity) end += std::fabs(end) * growth;  // not -inf + inf
  }
}

inline void penalize_repetition(float* x, int64_t n, const uint8_t* seen, float penalty) {
  constexpr int kAtOnce = 32;  // most ids are unseen: look at several together first
  for (int64_t i = 0; i < n; i += kAtOnce) {
    int64_t end = std::min(n, i + kAtOnce);
    uint64_t flags[kAtOnce / 8] = {};
    if (end == i + kAtOnce) std::memcpy(flags, seen + i, kAtOnce);  // a load, as the size is known
    else std::memcpy(flags, seen + i, end - i);
    if (!(flags[0] | flags[1] | flags[2] | flags[3])) continue;
    for (int64_t j = i; j < end; ++j) {
      if (!seen[j] || x[j] == -kInfinity) continue;
      x[j] = std::clamp(x[j] < 0.f ? x[j] * penalty : x[j] / penalty, -kMaxScore, kMaxScore);
    }
  }
}

inline void divide(float* x, int64_t n, float temperature) {
  for (int64_t i = 0; i < n; i += kLanes) store_first(x + i, load_first(x + i, n - i) / set1(temperature), n - i);
}

// -- Cuts, the choice and details

class RowSampler {
 public:
  void run(const SamplingArgs& args, int64_t index) {
    const SamplingRow& row = args.rows[index];
    int64_t n = args.vocab_size;
    float* x = args.scores + index * args.stride;
    auto [best, is_finite] = scan(x, n);
    args.is_finite[index] = is_finite;
    if (!is_finite && has_no_order(x, n)) return give_up(args, index);
    if (row.allowed >= 0) keep_allowed(x, n, args.allowed + row.allowed * ((n + 7) / 8));
    if (row.num_ends > 0) change_ends(x, args.end_ids + row.first_end, row.num_ends, row.end_growth);
    if (row.seen >= 0) penalize_repetition(x, n, args.seen + row.seen * n, row.penalty);
    if (row.allowed >= 0 || row.num_ends > 0 || row.seen >= 0) best = scan(x, n).largest;
    if (row.choice == Choice::sampled && row.temperature != 1.f) {
      divide(x, n, row.temperature);
      best /= row.temperature;  // rounding keeps the order
    }
    Scores scores{x, nullptr, n};
    if (row.choice == Choice::sampled && std::fabs(best) < kInfinity) {  // otherwise all are dropped, or some overflowed
      scores = cut(scores, row, best);
      if (scores.ids) replace(x, n, scores);
      args.ids[index] = scores.id(choose(scores, best, row.draw));
    } else if (row.choice != Choice::given) {
      args.ids[index] = find(x, n, best);
    }
    if (row.detail >= 0) describe(args, row, scores, best, x[args.ids[index]]);
  }

 private:
  // NaN, or more than any score.
  static bool has_no_order(const float* x, int64_t n) {
    return std::any_of(x, x + n, [](float value) { return !(value < kInfinity); });
  }

  // The request fails; its token only has to exist.
  static void give_up(const SamplingArgs& args, int64_t index) {
    const SamplingRow& row = args.rows[index];
    if (row.choice != Choice::given) args.ids[index] = 0;
    if (row.detail < 0) return;
    args.logprobs[row.detail] = std::numeric_limits<float>::quiet_NaN();
    args.ranks[row.detail] = 1;
    std::fill_n(args.top_ids + row.detail * args.width, args.width, -1);
  }

  // Changes `best` if the best score is dropped.
  Scores cut(Scores scores, const SamplingRow& row, float& best) {
    if (row.top_k > 0) scores = keep_top_k(scores, row.top_k);
    if (row.top_p < 1.0) scores = keep_top_p(scores, best, row.top_p);
    if (row.typical_p > 0.0 && row.typical_p < 1.0) {
      scores = keep_typical(scores, best, row.typical_p);
      best = scan(scores.values, scores.size).largest;
    }
    return scores;
  }

  // Keeps the scores that are at least the k-th largest.
  Scores keep_top_k(Scores scores, int64_t k) {
    if (k >= scores.size) return scores;
    if (k * kGroup * 2 <= scores.size) {
      // The k-th largest maximum of groups is at most the k-th largest score: smaller scores need no closer look.
      float least = selection_.cut(collect_maxima(scores.values, scores.size), double(k)).border;
      scores = keep_if(scores, [&](Vec v) { return at_least(v, set1(least)); });
    }
    std::copy_n(scores.values, scores.size, selection_.keys(scores.size));
    std::fill_n(selection_.weights(scores.size), scores.size, 1.f);
    float border = selection_.cut(scores.size, double(k)).border;
    return keep_if(scores, [&](Vec v) { return at_least(v, set1(border)); });
  }

  // Makes the maxima of all groups the selection's keys, each of weight 1; returns how many there are.
  int64_t collect_maxima(const float* x, int64_t n) {
    int64_t num = (n + kGroup * kLanes - 1) / (kGroup * kLanes) * kLanes;
    float* keys = selection_.keys(num);
    for (int64_t i = 0, group = 0; i < n; i += kGroup * kLanes, group += kLanes) {
      Vec best = set1(-kInfinity);
      for (int64_t j = i; j < std::min(n, i + kGroup * kLanes); j += kLanes) best = max(best, scores_at(x, n, j));
      store(keys + group, best);
    }
    std::fill_n(selection_.weights(num), num, 1.f);
    return num;
  }

  // Keeps each score if greater ones and ties with lower ids have less weight than p of the total.
  Scores keep_top_p(Scores scores, float best, double p) {
    // Scores below the border weigh at most 1 - p of the total together, which is at least 1: so whatever weighs far
    // less than the n-th part of 1 - p is below it.
    Vec least = set1(float(0.5 * (1.0 - p) / scores.size));
    Sum sum;
    scores = keep_if(scores, [&](Vec v) {
      Vec w = weights(v, set1(best));
      sum.add(w);
      return at_least(w, least);
    });
    collect_weights(scores, best, [](Vec v) { return v; });
    double total = sum.total();
    double target = p * total;
    Cut cut = selection_.cut(scores.size, target);
    double weight = std::exp(double(cut.border) - best);
    int64_t num_ties = std::max(1.0, std::ceil((target - cut.before) / weight));
    return keep_if(scores, [&, border = set1(cut.border)](Vec v) {
      Bits above = greater(v, border), ties = equal(v, border);
      while (__builtin_popcount(ties) > num_ties) ties &= ~(1u << (31 - __builtin_clz(ties)));
      num_ties -= __builtin_popcount(ties);
      return above | ties;
    });
  }

  // Keeps the scores of about average surprise, up to p of the total weight, ties included.
  Scores keep_typical(Scores scores, float best, double p) {
    Sum sum, products;
    for (int64_t i = 0; i < scores.size; i += kLanes) {
      Vec v = scores_at(scores.values, scores.size, i), w = weights(v, set1(best));
      sum.add(w);
      products.add(w * max(v - set1(best), set1(-100.f)));  // not 0 times infinity
    }
    double total = sum.total();
    Vec log_total = set1(float(std::log(total)));
    Vec entropy = set1(float(std::log(total) - products.total() / total));
    // How near a score's surprise is to the entropy: at most 0.
    auto nearness = [&](Vec v) { return -abs(log_total - (v - set1(best)) - entropy); };
    collect_weights(scores, best, nearness);
    float border = selection_.cut(scores.size, p * total).border;
    return keep_if(scores, [&](Vec v) { return at_least(nearness(v), set1(border)); });
  }

  // Makes the scores the selection's keys, as `key` changes them.
  template <class F> void collect_weights(const Scores& scores, float best, F&& key) {
    float *keys = selection_.keys(scores.size), *all = selection_.weights(scores.size);
    for (int64_t i = 0; i < scores.size; i += kLanes) {
      Vec v = scores_at(scores.values, scores.size, i);
      store(keys + i, key(v));
      store(all + i, weights(v, set1(best)));
    }
  }

  template <class F> Scores keep_if(Scores scores, F&& is_kept) {
    float *values = room(values_, scores.size), *ids = room(ids_, scores.size);
    int64_t num = 0;
    for (int64_t i = 0; i < scores.size; i += kLanes) {
      Vec v = scores_at(scores.values, scores.size, i);
      Bits bits = is_kept(v) & first_lanes(scores.size - i);
      if (!bits) continue;
      compress(ids + num, scores.ids ? load(scores.ids + i) : set1(float(i)) + iota(), bits);
      compress(values + num, v, bits);
      num += __builtin_popcount(bits);
    }
    return {values, ids, num};
  }

  static void replace(float* x, int64_t n, const Scores& scores) {
    std::fill_n(x, n, -kInfinity);
    for (int64_t i = 0; i < scores.size; ++i) x[scores.id(i)] = scores.values[i];
  }

  // The index of the first score at which the sum of weights exceeds `draw` times the total.
  int64_t choose(const Scores& scores, float best, double draw) {
    sums_.clear();
    for (int64_t i = 0; i < scores.size; i += kSumBlock)
      sums_.push_back(sum_weights(scores.values + i, std::min(kSumBlock, scores.size - i), best));
    double total = 0.0;
    for (double sum : sums_) total += sum;
    double target = draw * total, before = 0.0;
    size_t block = 0;
    while (block + 1 < sums_.size() && before + sums_[block] <= target) before += sums_[block++];
    for (int64_t start = block * kSumBlock; start < scores.size; start += kLanes) {
      float lanes[kLanes];
      store(lanes, weights(scores_at(scores.values, scores.size, start), set1(best)));
      for (int lane = 0; lane < kLanes; ++lane)
        if ((before += lanes[lane]) > target) return start + lane;
    }
    return find(scores.values, scores.size, best);  // rounding has left nothing above the target
  }

  // The last step: it may destroy what `scores` refers to.
  void describe(const SamplingArgs& args, const SamplingRow& row, const Scores& scores, float best, float chosen) {
    float log_total = float(std::log(sum_weights(scores.values, scores.size, best)));
    args.logprobs[row.detail] = chosen - best - log_total;
    int64_t num_above = 0;
    for (int64_t i = 0; i < scores.size; i += kLanes)
      num_above += __builtin_popcount(greater(scores_at(scores.values, scores.size, i), set1(chosen)));
    args.ranks[row.detail] = 1 + num_above;
    int64_t* ids = args.top_ids + row.detail * args.width;
    float* logprobs = args.top_logprobs + row.detail * args.width;
    int64_t num = 0;
    if (row.top_n > 0) {
      Scores top = keep_top_k(scores, row.top_n);
      for (int64_t i = 0; i < top.size && num < args.width; ++i) {
        if (top.values[i] == -kInfinity) continue;
        ids[num] = top.id(i);
        logprobs[num++] = top.values[i] - best - log_total;
      }
    }
    std::fill(ids + num, ids + args.width, -1);
  }

  Selection selection_;
  std::vector<float> values_, ids_;
  std::vector<double> sums_;
};

inline void sample(const SamplingArgs& args, int64_t row) {
  thread_local RowSampler sampler;
  sampler.run(args, row);
}

}  // namespace tgis::TGIS_ISA

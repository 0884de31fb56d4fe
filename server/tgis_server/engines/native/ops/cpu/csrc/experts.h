// Mixtures of experts: each token chooses a few experts, whose results are added with weights.
#pragma once
#include <algorithm>
#include <limits>

#include "linear.h"

namespace tgis::TGIS_ISA {

// What the tokens of a step have chosen. Pairs of a token and an expert are ordered by expert, and by token among those
// of an expert; `place` is a pair's index in this order. The buffer has kWords * num_chosen words for each token.
class Chosen {
 public:
  static constexpr int64_t kWords = 6;

  Chosen(const Buffer& buffer, int64_t num_tokens, int64_t num_chosen)
      : num_chosen_(num_chosen), num_pairs_(num_tokens * num_chosen), words_(reinterpret_cast<int32_t*>(buffer.data)) {}

  int64_t num_pairs() const { return num_pairs_; }
  int32_t* experts(int64_t token) const { return words_ + token * num_chosen_; }
  float* weights(int64_t token) const { return reinterpret_cast<float*>(words_ + num_pairs_) + token * num_chosen_; }
  int32_t* places(int64_t token) const { return words_ + 2 * num_pairs_ + token * num_chosen_; }
  int32_t& token(int64_t place) const { return words_[3 * num_pairs_ + place]; }

  // The experts that any token has chosen, in ascending order, then -1; as many as there can be.
  int32_t& used(int64_t i) const { return words_[4 * num_pairs_ + i]; }
  int32_t& end(int64_t i) const { return words_[5 * num_pairs_ + i]; }  // of the places of that expert
  int64_t begin(int64_t i) const { return i ? end(i - 1) : 0; }

  // Orders the pairs, once all tokens have chosen.
  void order(int64_t num_experts) const {
    std::vector<int32_t> counts(num_experts);
    for (int64_t i = 0; i < num_pairs_; ++i) ++counts[words_[i]];
    int64_t num_used = 0, next = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
      if (!counts[e]) continue;
      used(num_used) = e;
      end(num_used++) = next + counts[e];
      int32_t first = next;
      next += counts[e];
      counts[e] = first;
    }
    for (int64_t i = num_used; i < std::min(num_experts, num_pairs_); ++i) used(i) = -1;
    for (int64_t i = 0; i < num_pairs_; ++i) {
      int32_t place = counts[words_[i]]++;
      places(0)[i] = place;
      token(place) = i / num_chosen_;
    }
  }

 private:
  const int64_t num_chosen_, num_pairs_;
  int32_t* const words_;
};

// Writes experts and weights; if all tokens are in one item, also their order.
class Choose : public Op {
 public:
  explicit Choose(const ChooseArgs& args) : a_(args) {}

  static int64_t num_items(const Step& step) { return (step.num_tokens + kTokens - 1) / kTokens; }
  int64_t begin(const Step& step) override { return num_items(step); }

  void run(const Step& step, int64_t item) override {
    Chosen chosen(step.buffers[a_.choice], step.num_tokens, a_.num_chosen);
    std::vector<float> values(a_.num_experts), compared(a_.num_experts), in_group(a_.num_experts / a_.num_groups);
    int64_t end = std::min(step.num_tokens, (item + 1) * kTokens);
    for (int64_t t = item * kTokens; t < end; ++t) {
      const float* scores = step.buffers[a_.scores].row<float>(t);
      if (a_.scoring == Scoring::sparsemixer) mix_sparsely(scores, compared, chosen.experts(t), chosen.weights(t));
      else choose(scores, values, compared, in_group, chosen.experts(t), chosen.weights(t));
    }
    if (num_items(step) == 1) chosen.order(a_.num_experts);
  }

 private:
  static constexpr int64_t kTokens = 16;
  static constexpr float kDropped = -std::numeric_limits<float>::infinity();

  // The index of the largest value; the first of equal ones. A NaN is never chosen: then it is some index in range.
  static int64_t largest_of(const std::vector<float>& values) {
    int64_t best = 0;
    for (int64_t i = 1; i < int64_t(values.size()); ++i)
      if (values[i] > values[best] || values[best] != values[best]) best = i;
    return best;
  }

  void choose(const float* scores, std::vector<float>& values, std::vector<float>& compared,
              std::vector<float>& in_group, int32_t* experts, float* weights) const {
    int64_t n = a_.num_experts;
    if (a_.scoring == Scoring::softmax) {
      float most = *std::max_element(scores, scores + n), total = 0.f;
      for (int64_t e = 0; e < n; ++e) total += values[e] = std::exp(scores[e] - most);
      for (int64_t e = 0; e < n; ++e) values[e] /= total;
    } else {
      for (int64_t e = 0; e < n; ++e) values[e] = 1.f / (1.f + std::exp(-scores[e]));
    }
    for (int64_t e = 0; e < n; ++e) compared[e] = values[e] + (a_.bias ? a_.bias[e] : 0.f);
    if (a_.num_chosen_groups < a_.num_groups) drop_groups(compared, in_group);
    float sum = 0.f;
    for (int64_t i = 0; i < a_.num_chosen; ++i) {
      experts[i] = largest_of(compared);
      compared[experts[i]] = kDropped;
      sum += weights[i] = values[experts[i]];
    }
    float factor = a_.is_normalized ? a_.scale / (sum + 1e-20f) : a_.scale;
    for (int64_t i = 0; i < a_.num_chosen; ++i) weights[i] *= factor;
  }

  // Keeps the groups whose two best experts have the largest sums.
  void drop_groups(std::vector<float>& compared, std::vector<float>& in_group) const {
    int64_t size = a_.num_experts / a_.num_groups;
    std::vector<float> sums(a_.num_groups);
    for (int64_t g = 0; g < a_.num_groups; ++g) {
      std::copy_n(compared.begin() + g * size, size, in_group.begin());
      std::partial_sort(in_group.begin(), in_group.begin() + std::min<int64_t>(2, size), in_group.end(),
                        std::greater<float>());
      sums[g] = in_group[0] + (size > 1 ? in_group[1] : 0.f);
    }
    std::vector<bool> is_kept(a_.num_groups);
    for (int64_t i = 0; i < a_.num_chosen_groups; ++i) {
      int64_t best = largest_of(sums);
      is_kept[best] = true;
      sums[best] = kDropped;
    }
    for (int64_t e = 0; e < a_.num_experts; ++e)
      if (!is_kept[e / size]) compared[e] = kDropped;
  }

  // SparseMixer (arXiv:2310.00811) without its noise: an expert's weight is its share among those whose scores are close
  // to its own, and not chosen yet.
  void mix_sparsely(const float* scores, std::vector<float>& left, int32_t* experts, float* weights) const {
    std::copy_n(scores, a_.num_experts, left.begin());
    for (int64_t i = 0; i < a_.num_chosen; ++i) {
      int64_t best = largest_of(left);
      float most = left[best], total = 0.f;
      for (int64_t e = 0; e < a_.num_experts; ++e) {
        bool is_far = (most - scores[e]) / std::max(std::abs(scores[e]), most) > 2 * a_.jitter;
        if (!is_far) total += std::exp(left[e] - most);
      }
      experts[i] = best;
      weights[i] = a_.scale / total;
      left[best] = kDropped;
    }
  }

  const ChooseArgs a_;
};

class Order : public Op {
 public:
  explicit Order(const ChooseArgs& args) : a_(args) {}
  int64_t begin(const Step& step) override { return Choose::num_items(step) > 1; }
  void run(const Step& step, int64_t) override {
    Chosen(step.buffers[a_.choice], step.num_tokens, a_.num_chosen).order(a_.num_experts);
  }

 private:
  const ChooseArgs a_;
};

template <class E> class Gather : public Op {
 public:
  explicit Gather(const GatherArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    per_item_ = std::max<int64_t>(1, 8192 / a_.width);
    int64_t num_pairs = step.num_tokens * a_.num_chosen;
    return step.num_tokens == 1 ? 0 : (num_pairs + per_item_ - 1) / per_item_;
  }

  void run(const Step& step, int64_t item) override {
    Chosen chosen(step.buffers[a_.choice], step.num_tokens, a_.num_chosen);
    Buffer out = lines_of(step.buffers[a_.output], a_.width, sizeof(Input<E>));
    int64_t end = std::min(chosen.num_pairs(), (item + 1) * per_item_);
    for (int64_t i = item * per_item_; i < end; ++i) {
      const Input<E>* x = step.buffers[a_.input].row<Input<E>>(chosen.token(i));
      std::copy_n(x, a_.width, out.row<Input<E>>(i));
    }
  }

 private:
  const GatherArgs a_;
  int64_t per_item_ = 1;
};

template <class E> class Experts : public Op {
 public:
  explicit Experts(const ExpertsArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    int64_t most = std::min(a_.num_experts, step.num_tokens * a_.num_chosen);  // experts in use
    pieces_ = {a_.num_inputs, a_.num_outputs, most, step.num_threads};
    return most * pieces_.num_columns();
  }

  void run(const Step& step, int64_t item) override {
    Chosen chosen(step.buffers[a_.choice], step.num_tokens, a_.num_chosen);
    int64_t index = item / pieces_.num_columns(), b0 = item % pieces_.num_columns() * pieces_.blocks;
    int64_t expert = chosen.used(index);
    if (expert < 0) return;
    int64_t b1 = std::min(pieces_.num_blocks, b0 + pieces_.blocks);
    const E* weight = static_cast<const E*>(a_.weights[expert]);
    const float* bias = a_.biases ? a_.biases + expert * round_up(a_.num_outputs, kColumns) : nullptr;
    Buffer in = lines_of(step.buffers[a_.input], a_.num_inputs, sizeof(Input<E>));
    if (step.num_tokens == 1 && a_.single >= 0) in = {step.buffers[a_.single].data, 0};
    Buffer out = lines_of(step.buffers[a_.output], a_.num_outputs, sizeof(float));
    for (int64_t m = chosen.begin(index); m < chosen.end(index); m += pieces_.rows)
      for (int64_t b = b0; b < b1; ++b)
        multiply_block(in, out, m, std::min<int64_t>(chosen.end(index), m + pieces_.rows), b,
                       weight + b * block_elements<E>(a_.num_inputs), a_.num_inputs, bias);
  }

 private:
  const ExpertsArgs a_;
  Pieces<E> pieces_{1, 1, 1, 1};
};

class Combine : public Op {
 public:
  explicit Combine(const CombineArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    per_item_ = std::max<int64_t>(1, 4096 / (a_.width * a_.num_chosen));
    return (step.num_tokens + per_item_ - 1) / per_item_;
  }

  void run(const Step& step, int64_t item) override {
    Chosen chosen(step.buffers[a_.choice], step.num_tokens, a_.num_chosen);
    Buffer in = lines_of(step.buffers[a_.input], a_.width, sizeof(float));
    int64_t end = std::min(step.num_tokens, (item + 1) * per_item_);
    for (int64_t t = item * per_item_; t < end; ++t) {
      float* out = step.buffers[a_.output].row<float>(t);
      const float* shared = a_.shared < 0 ? nullptr : step.buffers[a_.shared].row<float>(t);
      float share = a_.gate < 0 ? 1.f : 1.f / (1.f + std::exp(-*step.buffers[a_.gate].row<float>(t)));
      for (int64_t i = 0; i < a_.width; i += kLanes) {
        Vec sum = shared ? load(shared + i) * set1(share) : zero();
        for (int64_t j = 0; j < a_.num_chosen; ++j)
          sum = fma(load(in.row<float>(chosen.places(t)[j]) + i), set1(chosen.weights(t)[j]), sum);
        store(out + i, sum);
      }
    }
  }

 private:
  const CombineArgs a_;
  int64_t per_item_ = 1;
};

}  // namespace tgis::TGIS_ISA

// Norms over a token's elements, after adding to the residual stream.
#pragma once
#include "tile.h"

namespace tgis::TGIS_ISA {

// How far a norm shifts and scales a line of n elements.
struct Moments {
  float shift, factor;
};

inline Moments moments(NormKind kind, const float* x, int64_t n, float eps) {
  if (kind == NormKind::none) return {0.f, 1.f};
  Vec total = zero();
  if (kind == NormKind::layer)
    for (int64_t i = 0; i < n; i += kLanes) total += load_first(x + i, n - i);
  float mean = kind == NormKind::layer ? sum(total) / n : 0.f;
  Vec squares = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec d = keep(load_first(x + i, n - i) - set1(mean), 0, n - i, zero());
    squares = fma(d, d, squares);
  }
  return {mean, 1.f / std::sqrt(sum(squares) / n + eps)};
}

// Writes exactly n elements; `out` may be `x`.
template <class Out>
inline void normalize(Moments m, const float* x, const float* weight, const float* bias, int64_t n, Out* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vec v = (load_first(x + i, n - i) - set1(m.shift)) * set1(m.factor);
    if (weight) v = v * load_first(weight + i, n - i);
    if (bias) v = v + load_first(bias + i, n - i);
    store_first(out + i, v, n - i);
  }
}

// Norms over several heads together, of which other ranks may have some: first the sums, then, with those of all ranks,
// the norms.
class Squares : public Op {
 public:
  explicit Squares(const SquaresArgs& args) : a_(args) {}
  int64_t begin(const Step& step) override { return step.num_tokens; }
  void run(const Step& step, int64_t t) override {
    const float* x = step.buffers[a_.input].row<float>(t);
    float* out = step.buffers[a_.output].row<float>(t);
    out[0] = squares(x, a_.first);
    out[1] = squares(x + a_.first, a_.second);
  }

 private:
  static float squares(const float* x, int64_t n) {
    Vec total = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
      Vec v = keep(load_first(x + i, n - i), 0, n - i, zero());
      total = fma(v, v, total);
    }
    return sum(total);
  }

  const SquaresArgs a_;
};

class Rescale : public Op {
 public:
  explicit Rescale(const RescaleArgs& args) : a_(args) {}
  int64_t begin(const Step& step) override { return step.num_tokens; }
  void run(const Step& step, int64_t t) override {
    float* x = step.buffers[a_.tokens].row<float>(t);
    const float* squares = step.buffers[a_.squares].row<float>(t);
    Moments first{0.f, 1.f / std::sqrt(squares[0] / a_.first_count + a_.eps)};
    Moments second{0.f, 1.f / std::sqrt(squares[1] / a_.second_count + a_.eps)};
    normalize(first, x, a_.weight, nullptr, a_.first, x);
    normalize(second, x + a_.first, a_.weight + a_.first, nullptr, a_.second, x + a_.first);
  }

 private:
  const RescaleArgs a_;
};

template <class E> class Norm : public Op {
 public:
  explicit Norm(const NormArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    tokens_per_item_ = std::max<int64_t>(1, 2048 / a_.width);
    return (step.num_tokens + tokens_per_item_ - 1) / tokens_per_item_;
  }

  void run(const Step& step, int64_t item) override {
    int64_t end = std::min(step.num_tokens, (item + 1) * tokens_per_item_);
    for (int64_t t = item * tokens_per_item_; t < end; ++t) {
      float* residual = step.buffers[a_.residual].row<float>(t);
      if (a_.addend >= 0) add(residual, step.buffers[a_.addend].row<float>(t));
      if (a_.output < 0) continue;
      const Buffer& out = step.buffers[a_.output];
      Moments m = moments(a_.kind, residual, a_.width, a_.eps);
      if (a_.to_input) normalize(m, residual, a_.weight, a_.bias, a_.width, out.row<Input<E>>(t));
      else normalize(m, residual, a_.weight, a_.bias, a_.width, out.row<float>(t));
    }
  }

 private:
  void add(float* residual, const float* addend) const {
    for (int64_t i = 0; i < a_.width; i += kLanes)
      store(residual + i, fma(load(addend + i), set1(a_.scale), load(residual + i)));
  }

  const NormArgs a_;
  int64_t tokens_per_item_ = 1;
};

}  // namespace tgis::TGIS_ISA

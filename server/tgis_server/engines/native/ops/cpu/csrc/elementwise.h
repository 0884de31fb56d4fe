// Activations, sums and embeddings.
#pragma once
#include "tile.h"

namespace tgis::TGIS_ISA {

// Tokens that one item of an elementwise operation computes.
inline int64_t tokens_per_item(int64_t width) { return std::max<int64_t>(1, 4096 / width); }

inline int64_t num_items(const Step& step, int64_t width, int64_t num_lines = 0) {
  int64_t tokens = tokens_per_item(width);
  return (step.num_tokens * std::max<int64_t>(1, num_lines) + tokens - 1) / tokens;
}

template <class F> inline void for_tokens(const Step& step, int64_t width, int64_t item, F&& f, int64_t num_lines = 0) {
  int64_t tokens = tokens_per_item(width), num_rows = step.num_tokens * std::max<int64_t>(1, num_lines);
  int64_t end = std::min(num_rows, (item + 1) * tokens);
  for (int64_t t = item * tokens; t < end; ++t) f(t);
}

template <Activation kind> inline Vec activate(Vec x) {
  if constexpr (kind == Activation::silu) return x / (set1(1.f) + exp(-x));
  if constexpr (kind == Activation::relu) return max(zero(), x);  // in this order, a NaN stays one
  if constexpr (kind == Activation::relu_squared) return x * max(zero(), x);
  if constexpr (kind == Activation::gelu) return x * fma(erf(x * set1(0.70710678f)), set1(0.5f), set1(0.5f));
  if constexpr (kind == Activation::gelu_tanh) {
    Vec inner = set1(0.79788456f) * fma(x * x * x, set1(0.044715f), x);
    return x * fma(tanh(inner), set1(0.5f), set1(0.5f));
  }
  if constexpr (kind == Activation::swigluoai) {
    x = min(set1(7.f), x);
    return x / (set1(1.f) + exp(x * set1(-1.702f)));
  }
}

// What a gated MLP multiplies the activation by.
template <Activation kind> inline Vec factor(Vec up) {
  if constexpr (kind == Activation::swigluoai) return min(set1(7.f), max(set1(-7.f), up)) + set1(1.f);
  return up;
}

template <class E, Activation kind> class Activate : public Op {
 public:
  explicit Activate(const ActivationArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override { return num_items(step, a_.width, a_.num_lines); }

  void run(const Step& step, int64_t item) override {
    Buffer in = step.buffers[a_.input], outputs = step.buffers[a_.output];
    if (a_.num_lines) {
      in = lines_of(in, a_.is_gated ? 2 * a_.width : a_.width, sizeof(float));
      outputs = lines_of(outputs, a_.width, sizeof(Input<E>));
    }
    auto each = [&](int64_t t) {
      const float* x = in.row<float>(t);
      Input<E>* out = outputs.row<Input<E>>(t);
      for (int64_t i = 0; i < a_.width; i += kLanes) {
        Vec v = activate<kind>(load(x + i));
        store(out + i, a_.is_gated ? v * factor<kind>(load(x + a_.width + i)) : v);
      }
    };
    for_tokens(step, a_.width, item, each, a_.num_lines);
  }

 private:
  const ActivationArgs a_;
};

template <class E> class Add : public Op {
 public:
  explicit Add(const AddArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override { return num_items(step, a_.width); }

  void run(const Step& step, int64_t item) override {
    for_tokens(step, a_.width, item, [&](int64_t t) {
      const float* x = step.buffers[a_.first].row<float>(t);
      const float* y = a_.second < 0 ? nullptr : step.buffers[a_.second].row<float>(t);
      const Buffer& out = step.buffers[a_.output];
      for (int64_t i = 0; i < a_.width; i += kLanes) {
        Vec v = y ? load(x + i) + load(y + i) : load(x + i);
        if (a_.largest) v = min(set1(a_.largest), max(set1(-a_.largest), v));  // in this order, a NaN stays one
        if (a_.to_input) store(out.row<Input<E>>(t) + i, v);
        else store(out.row<float>(t) + i, v);
      }
    });
  }

 private:
  const AddArgs a_;
};

template <class E> class Embed : public Op {
 public:
  explicit Embed(const EmbedArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override { return num_items(step, a_.width); }

  void run(const Step& step, int64_t item) override {
    const int64_t* ids = reinterpret_cast<const int64_t*>(step.buffers[a_.ids].data);
    for_tokens(step, a_.width, item, [&](int64_t t) {
      int64_t line = ids[t] - a_.first_id;
      bool is_outside = line < 0 || line >= a_.num_rows;
      const E* x = static_cast<const E*>(a_.table) + line * a_.width;
      float* out = step.buffers[a_.output].row<float>(t);
      for (int64_t i = 0; i < a_.width; i += kLanes) {
        Vec v = is_outside ? zero() : load_first(x + i, a_.width - i) * set1(a_.scale);
        store(out + i, a_.adds ? load(out + i) + v : v);
      }
    });
  }

 private:
  const EmbedArgs a_;
};

}  // namespace tgis::TGIS_ISA

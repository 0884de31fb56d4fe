// Keys and values of one layer in blocks, in the panels that attention multiplies, and the operation that fills them.
//
// Each KV head of a block has its keys, then its values, both in panels of kPanel tokens:
//   keys   [width / step][kPanel][step]
//   values [kPanel / step][width][step]
// where `width` is the padded head size and `step` that of Packing.
#pragma once
#include <algorithm>
#include <vector>

#include "norm.h"

namespace tgis::TGIS_ISA {

constexpr int64_t kPanel = 16;

// Panels of a sequence are numbered through all of its blocks. The last one of a block may have fewer tokens.
template <class E> struct Layout {
  explicit Layout(const CacheShape& shape)
      : block_size(shape.block_size), panels((block_size + kPanel - 1) / kPanel),
        width(round_up(shape.head_dim, kPanel)), head_elements(2 * panels * kPanel * width),
        block_elements(shape.num_kv_heads * head_elements) {}

  int64_t panel_of(int64_t position) const {
    return position / block_size * panels + position % block_size / kPanel;
  }
  int64_t first_position(int64_t panel) const { return panel / panels * block_size + panel % panels * kPanel; }
  int64_t num_positions(int64_t panel) const { return std::min(kPanel, block_size - panel % panels * kPanel); }

  // Elements from the layer's first to the panel's keys; its values follow `to_values` elements later.
  int64_t offset(const int64_t* table, int64_t panel, int64_t head) const {
    return table[panel / panels] * block_elements + head * head_elements + panel % panels * kPanel * width;
  }
  int64_t to_values() const { return panels * kPanel * width; }

  int64_t block_size, panels, width, head_elements, block_elements;
};

// The first token of each row, and the number of all tokens.
inline void find_first_tokens(const Rows& rows, std::vector<int64_t>& first) {
  first.assign(1, 0);
  for (int64_t i = 0; i < rows.num_rows; ++i) first.push_back(first.back() + rows.num_tokens[i]);
}

inline const int64_t* table_of(const Rows& rows, int64_t row) {
  return rows.tables + rows.slots[row] * rows.table_stride;
}

// Normalises and rotates queries and keys, and writes keys and values to the cache.
template <class E> class Write : public Op {
 public:
  explicit Write(const WriteArgs& args) : a_(args), layout_(args.cache) {}

  int64_t begin(const Step& step) override {
    find_first_tokens(step.rows[a_.rows], first_tokens_);
    tokens_per_item_ = std::clamp<int64_t>(first_tokens_.back() / (4 * step.num_threads), 1, kPanel);
    return (first_tokens_.back() + tokens_per_item_ - 1) / tokens_per_item_;
  }

  void run(const Step& step, int64_t item) override {
    const Rows& rows = step.rows[a_.rows];
    int64_t end = cut(rows, std::min(first_tokens_.back(), (item + 1) * tokens_per_item_));
    int64_t t = cut(rows, item * tokens_per_item_);
    for (int64_t row = row_of(t); t < end; ++t) {
      while (t >= first_tokens_[row + 1]) ++row;
      float* x = step.buffers[a_.tokens].row<float>(t);
      prepare(step, t, x);
      write(layer_of<E>(a_, step), x, table_of(rows, row), rows.starts[row] + t - first_tokens_[row]);
    }
  }

 private:
  static constexpr int kStep = Packing<E>::kStep;

  int64_t row_of(int64_t token) const {
    return std::upper_bound(first_tokens_.begin(), first_tokens_.end(), token) - first_tokens_.begin() - 1;
  }

  // The nearest token at or before `token` that begins a panel or a row: two threads never write to the same panel.
  int64_t cut(const Rows& rows, int64_t token) const {
    if (token == first_tokens_.back()) return token;
    int64_t row = row_of(token), in_row = token - first_tokens_[row];
    return token - std::min(in_row, (rows.starts[row] + in_row) % layout_.block_size % kPanel);
  }

  void prepare(const Step& step, int64_t t, float* x) const {
    int64_t dim = a_.cache.head_dim;
    const E* factors = nullptr;
    if (a_.positions >= 0) {
      int64_t line = reinterpret_cast<const int64_t*>(step.buffers[a_.positions].data)[t];
      factors = static_cast<const E*>(a_.rotation) + line * 2 * a_.rotary_dim;
    }
    for (int64_t head = 0; head < a_.num_heads + a_.cache.num_kv_heads; ++head, x += dim) {
      if (a_.norm != NormKind::none)
        normalize(moments(a_.norm, x, dim, a_.norm_eps), x, a_.norm_weight ? a_.norm_weight + head * dim : nullptr,
                  a_.norm_bias ? a_.norm_bias + head * dim : nullptr, dim, x);
      if (factors) rotate(x, factors);
    }
  }

  void rotate(float* x, const E* factors) const {
    int64_t half = a_.rotary_dim / 2;
    const E* swapped = factors + a_.rotary_dim;
    for (int64_t i = 0; i < half; i += kLanes) {
      int64_t n = half - i;
      Vec low = load_first(x + i, n), high = load_first(x + half + i, n);
      store_first(x + i, fma(high, load_first(swapped + i, n), low * load_first(factors + i, n)), n);
      store_first(x + half + i,
                  fma(low, load_first(swapped + half + i, n), high * load_first(factors + half + i, n)), n);
    }
  }

  void write(E* layer, const float* x, const int64_t* table, int64_t position) const {
    int64_t dim = a_.cache.head_dim, panel = layout_.panel_of(position);
    int64_t lane = position - layout_.first_position(panel);
    for (int64_t head = 0; head < a_.cache.num_kv_heads; ++head) {
      E* keys = layer + layout_.offset(table, panel, head);
      E* values = keys + layout_.to_values();
      write_keys(x + (a_.num_heads + head) * dim, keys + lane * kStep);
      write_values(x + (a_.num_heads + a_.cache.num_kv_heads + head) * dim, values, lane);
    }
  }

  void write_keys(const float* x, E* out) const {
    for (int64_t i = 0; i < a_.cache.head_dim; i += kLanes) {
      E part[kLanes];
      store(part, load_first(x + i, a_.cache.head_dim - i));
      for (int j = 0; j < kLanes; ++j) out[(i + j) / kStep * kPanel * kStep + j % kStep] = part[j];
    }
  }

  // The first token of a step clears the others: they are multiplied, by 0, before they are written, and what the
  // block's former owner left there may be NaN.
  void write_values(const float* x, E* panel, int64_t lane) const {
    E* out = panel + lane / kStep * layout_.width * kStep + lane % kStep;
    for (int64_t i = 0; i < a_.cache.head_dim; i += kLanes) {
      E part[kLanes];
      store(part, load_first(x + i, a_.cache.head_dim - i));
      for (int j = 0; j < kLanes; ++j) {
        out[(i + j) * kStep] = part[j];
        for (int other = 1; other < kStep && lane % kStep == 0; ++other) out[(i + j) * kStep + other] = E{};
      }
    }
  }

  const WriteArgs a_;
  const Layout<E> layout_;
  std::vector<int64_t> first_tokens_;
  int64_t tokens_per_item_ = 1;
};

}  // namespace tgis::TGIS_ISA

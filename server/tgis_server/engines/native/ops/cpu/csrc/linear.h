// Linear layers. A weight is packed once, as blocks of kColumns outputs: [block][inputs / step][kColumns][step], where
// `step` inputs of an output fill 32 bits. The same packing serves any number of rows.
#pragma once
#include <algorithm>

#include "tile.h"

namespace tgis::TGIS_ISA {

// Work is divided into pieces whose weights, or whose rows, fit well into half of a core's second-level cache.
constexpr int64_t kWeightPiece = 96 << 10, kRowPiece = 384 << 10;
constexpr int64_t kAhead = 4096;  // bytes prefetched while weights stream from memory

template <class E> int64_t block_elements(int64_t num_inputs) {
  return round_up(num_inputs, Packing<E>::kStep) * kColumns;
}

template <class E>
void pack(const E* weight, int64_t stride, int64_t num_inputs, int64_t num_outputs, int64_t first, int64_t last,
          E* packed) {
  constexpr int step = Packing<E>::kStep;
  for (int64_t block = first; block < last; ++block) {
    E* out = packed + block * block_elements<E>(num_inputs);
    int64_t columns = std::min(kColumns, num_outputs - block * kColumns);
    if (columns < kColumns || num_inputs % step) std::memset(out, 0, block_elements<E>(num_inputs) * sizeof(E));
    // A line of the source at a time, from all columns: reads and writes both stay within the first-level cache.
    constexpr int64_t kLine = 64 / sizeof(E);
    for (int64_t k0 = 0; k0 < num_inputs; k0 += kLine) {
      int64_t k1 = std::min(num_inputs, k0 + kLine);
      for (int64_t n = 0; n < columns; ++n) {
        const E* row = weight + (block * kColumns + n) * stride;
        for (int64_t k = k0; k < k1; ++k) out[k / step * kColumns * step + n * step + k % step] = row[k];
      }
    }
  }
}

template <class E> class Linear : public Op {
 public:
  explicit Linear(const LinearArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    int64_t block_bytes = block_elements<E>(a_.num_inputs) * sizeof(E);
    num_blocks_ = (a_.num_outputs + kColumns - 1) / kColumns;
    int64_t most = std::max<int64_t>(1, num_blocks_ / (8 * step.num_threads));
    blocks_per_item_ = std::clamp<int64_t>(kWeightPiece / block_bytes, 1, most);
    rows_per_item_ = kRowPiece / (a_.num_inputs * int64_t(sizeof(Input<E>)));
    rows_per_item_ = std::max<int64_t>(kMaxRows * 4, rows_per_item_ / kMaxRows * kMaxRows);
    pieces_ = (num_blocks_ + blocks_per_item_ - 1) / blocks_per_item_;
    return pieces_ * ((step.num_tokens + rows_per_item_ - 1) / rows_per_item_);
  }

  void run(const Step& step, int64_t item) override {
    int64_t m0 = item / pieces_ * rows_per_item_, m1 = std::min(step.num_tokens, m0 + rows_per_item_);
    int64_t b0 = item % pieces_ * blocks_per_item_, b1 = std::min(num_blocks_, b0 + blocks_per_item_);
    const E* weight = static_cast<const E*>(a_.weight);
    for (int64_t b = b0; b < b1; ++b) multiply_block(step, m0, m1, b, weight + b * block_elements<E>(a_.num_inputs));
  }

 private:
  void multiply_block(const Step& step, int64_t m0, int64_t m1, int64_t block, const E* panel) const {
    constexpr int kWidth = kMaxVecs * kLanes;
    const Buffer &in = step.buffers[a_.input], &out = step.buffers[a_.output];
    int64_t x_stride = in.stride / sizeof(Input<E>);
    for (int part = 0; part < kColumns; part += kWidth) {
      int64_t column = block * kColumns + part;
      int64_t ahead = kAhead;  // only the first group of rows waits for memory
      for_row_groups(m1 - m0, [&](auto n, int64_t m) {
        Vec sums[n()][kMaxVecs];
        for (int v = 0; v < kMaxVecs; ++v)
          for (auto& of_row : sums) of_row[v] = a_.bias ? load(a_.bias + column + v * kLanes) : zero();
        const E* columns = panel + part * Packing<E>::kStep;
        const Input<E>* x = in.template row<Input<E>>(m0 + m);
        if (ahead)
          multiply<E, n(), kMaxVecs>(sums, x, x_stride, columns, kColumns * Packing<E>::kStep, a_.num_inputs, kAhead);
        else
          multiply<E, n(), kMaxVecs>(sums, x, x_stride, columns, kColumns * Packing<E>::kStep, a_.num_inputs);
        ahead = 0;
        for (int i = 0; i < n(); ++i)
          for (int v = 0; v < kMaxVecs; ++v) store(out.row<float>(m0 + m + i) + column + v * kLanes, sums[i][v]);
      });
    }
  }

  const LinearArgs a_;
  int64_t num_blocks_ = 0, blocks_per_item_ = 0, rows_per_item_ = 0, pieces_ = 0;
};

}  // namespace tgis::TGIS_ISA

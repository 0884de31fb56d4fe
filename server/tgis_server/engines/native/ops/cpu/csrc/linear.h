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

// Rows [first, last) of `in` times a block of outputs, into `out`. `bias` may be null.
template <class E>
void multiply_block(const Buffer& in, const Buffer& out, int64_t first, int64_t last, int64_t block, const E* panel,
                    int64_t num_inputs, const float* bias) {
  constexpr int kWidth = kMaxVecs * kLanes;
  int64_t x_stride = in.stride / sizeof(Input<E>);
  for (int part = 0; part < kColumns; part += kWidth) {
    int64_t column = block * kColumns + part;
    int64_t ahead = kAhead;  // only the first group of rows waits for memory
    for_row_groups(last - first, [&](auto n, int64_t m) {
      Vec sums[n()][kMaxVecs];
      for (int v = 0; v < kMaxVecs; ++v)
        for (auto& of_row : sums) of_row[v] = bias ? load(bias + column + v * kLanes) : zero();
      const E* columns = panel + part * Packing<E>::kStep;
      const Input<E>* x = in.template row<Input<E>>(first + m);
      if (ahead)
        multiply<E, n(), kMaxVecs>(sums, x, x_stride, columns, kColumns * Packing<E>::kStep, num_inputs, kAhead);
      else
        multiply<E, n(), kMaxVecs>(sums, x, x_stride, columns, kColumns * Packing<E>::kStep, num_inputs);
      ahead = 0;
      for (int i = 0; i < n(); ++i)
        for (int v = 0; v < kMaxVecs; ++v) store(out.row<float>(first + m + i) + column + v * kLanes, sums[i][v]);
    });
  }
}

// How many blocks of outputs, and how many rows, a piece of work has.
template <class E> struct Pieces {
  int64_t num_blocks, blocks, rows;

  Pieces(int64_t num_inputs, int64_t num_outputs, int64_t num_matrices, int num_threads) {
    num_blocks = (num_outputs + kColumns - 1) / kColumns;
    int64_t most = std::max<int64_t>(1, num_matrices * num_blocks / (8 * num_threads));
    blocks = std::clamp<int64_t>(kWeightPiece / (block_elements<E>(num_inputs) * int64_t(sizeof(E))), 1, most);
    rows = kRowPiece / (num_inputs * int64_t(sizeof(Input<E>)));
    rows = std::max<int64_t>(kMaxRows * 4, rows / kMaxRows * kMaxRows);
  }
  int64_t num_columns() const { return (num_blocks + blocks - 1) / blocks; }
};

template <class E> class Linear : public Op {
 public:
  explicit Linear(const LinearArgs& args) : a_(args) {}

  int64_t begin(const Step& step) override {
    pieces_ = {a_.num_inputs, a_.num_outputs, 1, step.num_threads};
    return pieces_.num_columns() * ((step.num_tokens + pieces_.rows - 1) / pieces_.rows);
  }

  void run(const Step& step, int64_t item) override {
    int64_t columns = pieces_.num_columns(), blocks = pieces_.blocks;
    int64_t m0 = item / columns * pieces_.rows, m1 = std::min(step.num_tokens, m0 + pieces_.rows);
    int64_t b0 = item % columns * blocks, b1 = std::min(pieces_.num_blocks, b0 + blocks);
    const E* weight = static_cast<const E*>(a_.weight);
    for (int64_t b = b0; b < b1; ++b)
      multiply_block(step.buffers[a_.input], step.buffers[a_.output], m0, m1, b,
                     weight + b * block_elements<E>(a_.num_inputs), a_.num_inputs, a_.bias);
  }

 private:
  const LinearArgs a_;
  Pieces<E> pieces_{1, 1, 1, 1};
};

}  // namespace tgis::TGIS_ISA

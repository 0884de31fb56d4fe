// Attention to cached keys and values, for single tokens and for chunks alike.
//
// The queries of a row that share a KV head (tokens x query heads of the group) are cut into tiles. A tile visits its
// keys a few panels at a time and keeps, for each query, the largest score, the sum of the weights and the weighted sum
// of the values. That starts anew in each partition of the keys, and partitions are combined in their order. So the
// result of a query is the same whatever tile it is in, and whether one thread or several visit its partitions.
#pragma once
#include <atomic>
#include <cstdlib>

#include "cache.h"

namespace tgis::TGIS_ISA {

constexpr int64_t kTileQueries = 96;                 // a multiple of kMaxRows
constexpr int64_t kTilePanels = 4, kPartition = 32;    // panels visited at once; panels of a partition
constexpr int64_t kTileKeys = kTilePanels * kPanel;
constexpr int kTileVecs = kTileKeys / kLanes;
constexpr float kLowest = -1e30f;  // the largest score where no key has been seen; finite, so that differences are

// Memory that is aligned for vectors and only grows.
class Scratch {
 public:
  float* reserve(int64_t n) {
    if (n > size_) {
      data_.reset(static_cast<float*>(std::aligned_alloc(64, round_up(n * int64_t(sizeof(float)), 64))));
      if (!data_) throw std::bad_alloc();
      size_ = n;
    }
    return data_.get();
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float[], Free> data_;
  int64_t size_ = 0;
};

// e^x for x <= 0: a polynomial for 2^f, |f| <= 0.5, with a relative error of 1e-7. About 1e-38 below -87.
inline __attribute__((always_inline)) Vec exp_of_negative(Vec x) {
  Vec y = max(set1(-126.f), x * set1(1.44269504f));  // the order of operands lets a NaN of x through
  Vec n = floor(y + set1(0.5f)), f = y - n;
  Vec p = fma(f, set1(0.0013264727f), set1(0.009671513f));
  p = fma(p, f, set1(0.055507336f));
  p = fma(p, f, set1(0.24022242f));
  p = fma(p, f, set1(0.693147f));
  return fma(p, f, set1(1.f)) * power_of_two(n);
}

// Calls f(std::integral_constant<int, n>, first vector) for groups of vectors of which kRows rows fit in the registers.
template <int kRows, class F> inline void for_vec_groups(int64_t num_vecs, F&& f) {
  int64_t v = 0;
  auto take = [&](auto n) {
    for (; v + n() <= num_vecs; v += n()) f(n, v);
  };
  if constexpr (kRows * 4 <= kMaxRows * kMaxVecs) take(std::integral_constant<int, 4>{});
  take(std::integral_constant<int, 2>{});
  take(std::integral_constant<int, 1>{});
}

template <class E> class Attend : public Op {
 public:
  explicit Attend(const AttendArgs& args)
      : a_(args), layout_(args.cache), group_(args.num_heads / args.cache.num_kv_heads),
        state_stride_(layout_.width + 2 * kPanel) {}

  int64_t begin(const Step& step) override {
    cut_tiles(step.rows[a_.rows]);
    int64_t work = 0, num_states = 0;
    for (const Tile& tile : tiles_) work += tile.work();
    units_.clear();
    splits_.clear();
    // The longest come last in a chunk, and chunks last in a step; they are begun first.
    for (auto tile = tiles_.rbegin(); tile != tiles_.rend(); ++tile) {
      int64_t first = tile->first / kPartition, parts = (tile->last + kPartition - 1) / kPartition - first;
      if (parts < 2 || tile->work() * step.num_threads * 4 <= work * a_.cache.num_kv_heads) {
        units_.push_back({*tile, -1, 0});
        continue;
      }
      for (int64_t part = 0; part < parts; ++part) {
        units_.push_back({*tile, int64_t(splits_.size()), part});
        units_.back().tile.first = std::max(tile->first, (first + part) * kPartition);
        units_.back().tile.last = std::min(tile->last, (first + part + 1) * kPartition);
      }
      splits_.push_back({num_states, parts});
      num_states += parts * a_.cache.num_kv_heads * tile->num_queries;
    }
    states_.reserve(num_states * state_stride_);
    int64_t num_left = int64_t(splits_.size()) * a_.cache.num_kv_heads;
    if (int64_t(num_left_.size()) < num_left) num_left_ = std::vector<std::atomic<int64_t>>(num_left);
    for (int64_t i = 0; i < num_left; ++i)
      num_left_[i].store(splits_[i / a_.cache.num_kv_heads].num_parts, std::memory_order_relaxed);
    return int64_t(units_.size()) * a_.cache.num_kv_heads;
  }

  void run(const Step& step, int64_t item) override {
    static thread_local Scratch scratch;
    const Unit& unit = units_[item / a_.cache.num_kv_heads];
    int64_t kv_head = item % a_.cache.num_kv_heads, state_size = kTileQueries * state_stride_;
    float* total = scratch.reserve(2 * state_size + kTileQueries * (layout_.width + kTileKeys));
    float* part = total + state_size;
    Work work(*this, step, unit.tile, kv_head, part + state_size);
    if (unit.split >= 0) return run_part(work, unit, kv_head);
    const Tile& tile = unit.tile;
    int64_t first = tile.first;
    do {
      int64_t last = std::min(tile.last, (first / kPartition + 1) * kPartition);
      work.visit(first, last, first == tile.first ? total : part);
      if (first > tile.first) combine(total, part, tile.num_queries);
      first = last;
    } while (first < tile.last);
    work.finish(total);
  }

 private:
  // Consecutive queries of a row for one KV head, and the panels that they see some of.
  struct Tile {
    int64_t row, token;  // the row's first token in the step
    int64_t query, num_queries;
    int64_t first, last;
    int64_t work() const { return num_queries * (last - first); }
  };
  // What one thread does at once: a whole tile, or a part of one that several threads share.
  struct Unit {
    Tile tile;
    int64_t split, part;
  };
  // A tile whose partitions are visited by several threads. Their states are kept by partition, then KV head.
  struct Split {
    int64_t state, num_parts;
  };
  struct Range {
    int64_t first, last;
  };
  struct Panels {
    int64_t num = 0;
    const E* keys[kTilePanels];
    int64_t first[kTilePanels], count[kTilePanels];
  };
  class Work;

  Range seen(int64_t query, int64_t num_keys) const {
    int64_t last = num_keys;
    if (a_.is_causal) last = std::min(last, query + 1);
    else if (a_.window) last = std::min(last, query + a_.window);
    return {a_.window ? std::max<int64_t>(0, query - a_.window + 1) : 0, last};
  }

  void cut_tiles(const Rows& rows) {
    tiles_.clear();
    for (int64_t row = 0, token = 0; row < rows.num_rows; token += rows.num_tokens[row++]) {
      int64_t num_queries = rows.num_tokens[row] * group_;
      for (int64_t query = 0; query < num_queries; query += kTileQueries) {
        int64_t n = std::min(kTileQueries, num_queries - query), start = rows.starts[row];
        int64_t first = seen(start + query / group_, rows.num_keys[row]).first;
        int64_t last = seen(start + (query + n - 1) / group_, rows.num_keys[row]).last;
        tiles_.push_back({row, token, query, n, layout_.panel_of(first), last ? layout_.panel_of(last - 1) + 1 : 0});
      }
    }
  }

  // Visits a part; the thread that comes last combines all parts of the tile.
  void run_part(Work& work, const Unit& unit, int64_t kv_head) {
    const Split& split = splits_[unit.split];
    int64_t num_heads = a_.cache.num_kv_heads;
    auto state = [&](int64_t part) {
      return states_.data() + (split.state + (part * num_heads + kv_head) * unit.tile.num_queries) * state_stride_;
    };
    work.visit(unit.tile.first, unit.tile.last, state(unit.part));
    if (num_left_[unit.split * num_heads + kv_head].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int64_t part = 1; part < split.num_parts; ++part) combine(state(0), state(part), unit.tile.num_queries);
    work.finish(state(0));
  }

  // A state has for each query `width` sums of values, kPanel sums of weights, and the largest score.
  float& largest_score(float* state) const { return state[layout_.width + kPanel]; }

  void combine(float* total, float* part, int64_t num_queries) const {
    for (int64_t q = 0; q < num_queries; ++q, total += state_stride_, part += state_stride_) {
      float most = std::max(largest_score(total), largest_score(part));
      Vec of_total = exp_of_negative(set1(largest_score(total) - most));
      Vec of_part = exp_of_negative(set1(largest_score(part) - most));
      for (int64_t i = 0; i < layout_.width + kPanel; i += kLanes)
        store(total + i, fma(load(part + i), of_part, load(total + i) * of_total));
      largest_score(total) = most;
    }
  }

  const AttendArgs a_;
  const Layout<E> layout_;
  const int64_t group_, state_stride_;
  std::vector<Tile> tiles_;
  std::vector<Unit> units_;
  std::vector<Split> splits_;
  std::vector<std::atomic<int64_t>> num_left_;  // parts of each split and KV head that have not been visited
  static inline Scratch states_;  // of all layers, which attend one after another
};

// One tile for one KV head.
template <class E> class Attend<E>::Work {
 public:
  Work(const Attend& op, const Step& step, const Tile& tile, int64_t kv_head, float* scratch)
      : op_(op), a_(op.a_), layout_(op.layout_), step_(step), tile_(tile), kv_head_(kv_head),
        table_(table_of(step.rows[a_.rows], tile.row)), scores_(scratch),
        queries_(reinterpret_cast<Input<E>*>(scratch + kTileQueries * kTileKeys)) {
    const Rows& rows = step.rows[a_.rows];
    int64_t dim = a_.cache.head_dim;
    for (int64_t q = 0; q < tile.num_queries; ++q) {
      positions_[q] = rows.starts[tile.row] + (tile.query + q) / op.group_;
      seen_[q] = op.seen(positions_[q], rows.num_keys[tile.row]);
      const float* x = step.buffers[a_.queries].template row<float>(token(q)) + head(q) * dim;
      for (int64_t i = 0; i < dim; i += kLanes)
        store(queries_ + q * layout_.width + i, load_first(x + i, dim - i) * set1(a_.scale));
    }
  }

  // Attends to the panels [first, last), which are all of a partition that the tile sees.
  void visit(int64_t first, int64_t last, float* state) {
    for (int64_t q = 0; q < tile_.num_queries; ++q) {
      float* of_query = state + q * op_.state_stride_;
      for (int64_t i = 0; i < layout_.width + kPanel; i += kLanes) store(of_query + i, zero());
      op_.largest_score(of_query) = kLowest;
    }
    Panels panels = find(first, last);
    while (panels.num) {
      first += panels.num;
      Panels next = find(first, last);
      multiply_keys(panels);
      weigh(panels, state);
      multiply_values(panels, next, state);
      panels = next;
    }
  }

  // Divides by the sum of the weights, and writes the output.
  void finish(float* state) {
    int64_t dim = a_.cache.head_dim;
    for (int64_t q = 0; q < tile_.num_queries; ++q, state += op_.state_stride_) {
      Vec sums = zero();
      for (int64_t i = 0; i < kPanel; i += kLanes) sums += load(state + layout_.width + i);
      float total = sum(sums), factor = 1.f;
      if (a_.sinks) {
        float sink = a_.sinks[head(q)], score = op_.largest_score(state), most = std::max(score, sink);
        factor = std::exp(score - most);
        total = total * factor + std::exp(sink - most);
      }
      factor = total == 0 ? 0.f : factor / total;  // without any key, the output is zero
      Input<E>* out = step_.buffers[a_.output].template row<Input<E>>(token(q)) + head(q) * dim;
      for (int64_t i = 0; i < dim; i += kLanes) store_first(out + i, load(state + i) * set1(factor), dim - i);
    }
  }

 private:
  static constexpr int kStep = Packing<E>::kStep;
  static constexpr int64_t kWeightStride = kTileKeys * sizeof(float) / sizeof(Input<E>);

  int64_t token(int64_t q) const { return tile_.token + (tile_.query + q) / op_.group_; }
  int64_t head(int64_t q) const { return kv_head_ * op_.group_ + (tile_.query + q) % op_.group_; }

  // The panels from `first` to the next multiple of kTilePanels, or to `last`.
  Panels find(int64_t first, int64_t last) const {
    Panels found;
    for (last = std::min(last, (first / kTilePanels + 1) * kTilePanels); first < last; ++first, ++found.num) {
      found.keys[found.num] = layer_of<const E>(a_, step_) + layout_.offset(table_, first, kv_head_);
      found.first[found.num] = layout_.first_position(first);
      found.count[found.num] = layout_.num_positions(first);
    }
    return found;
  }

  void multiply_keys(const Panels& panels) {
    for_row_groups(tile_.num_queries, [&](auto rows, int64_t q) {
      for_vec_groups<rows()>(panels.num * kPanel / kLanes, [&](auto vecs, int64_t v0) {
        const E* columns[vecs()];
        for (int v = 0; v < vecs(); ++v) {
          int64_t key = (v0 + v) * kLanes;
          columns[v] = panels.keys[key / kPanel] + key % kPanel * kStep;
        }
        Vec sums[rows()][vecs()];
        for (auto& of_row : sums)
          for (Vec& s : of_row) s = zero();
        int64_t ahead = q == 0 ? layout_.to_values() * int64_t(sizeof(E)) : 0;
        multiply<E, rows(), vecs()>(sums, queries_ + q * layout_.width, layout_.width, columns, kPanel * kStep,
                                    a_.cache.head_dim, ahead);
        for (int m = 0; m < rows(); ++m)
          for (int v = 0; v < vecs(); ++v) store(scores_ + (q + m) * kTileKeys + (v0 + v) * kLanes, sums[m][v]);
      });
    });
  }

  // Turns scores into weights, in place, and adds them up. Sets how much earlier sums of values shrink.
  void weigh(const Panels& panels, float* state) {
    int64_t last = panels.first[panels.num - 1] + kPanel;
    bool is_partial = panels.num < kTilePanels;
    for (int64_t j = 0; j < panels.num; ++j) is_partial |= panels.count[j] < kPanel;
    for (int64_t q = 0; q < tile_.num_queries; ++q, state += op_.state_stride_) {
      if (is_partial || seen_[q].first > panels.first[0] || seen_[q].last < last) weigh_query<true>(panels, q, state);
      else weigh_query<false>(panels, q, state);
    }
  }

  template <bool kIsMasked> void weigh_query(const Panels& panels, int64_t q, float* state) {
    Vec x[kTileVecs], most = set1(kLowest);
    for (int v = 0; v < kTileVecs; ++v) {
      x[v] = load(scores_ + q * kTileKeys + v * kLanes);
      if (a_.soft_cap) x[v] = tanh(x[v] * set1(1.f / a_.soft_cap)) * set1(a_.soft_cap);
      if (a_.alibi_slopes || a_.distance_bias) x[v] = x[v] + bias(panels, q, v);
      if (kIsMasked) x[v] = mask(panels, q, v, x[v], set1(-INFINITY));
      most = max(x[v], most);
    }
    float& before = op_.largest_score(state);
    float now = std::max(before, largest(most));
    shrink_[q] = now > before ? std::exp(before - now) : 1.f;
    Vec total = load(state + layout_.width) * set1(shrink_[q]);
    Input<E>* weights = reinterpret_cast<Input<E>*>(scores_) + q * kWeightStride;
    for (int v = 0; v < kTileVecs; ++v) {
      Vec weight = exp_of_negative(x[v] - set1(now));
      if (kIsMasked) weight = mask(panels, q, v, weight, zero());
      total += weight;
      store(weights + v * kLanes, weight);
    }
    store(state + layout_.width, total);
    before = now;
  }

  // x where the query sees the key, and `other` elsewhere.
  Vec mask(const Panels& panels, int64_t q, int v, Vec x, Vec other) const {
    int64_t panel = v * kLanes / kPanel, key = v * kLanes % kPanel;
    if (panel >= panels.num) return other;
    int64_t begin = seen_[q].first - panels.first[panel];
    int64_t end = std::min(seen_[q].last - panels.first[panel], panels.count[panel]);
    return keep(x, begin - key, end - key, other);
  }

  Vec bias(const Panels& panels, int64_t q, int v) const {
    int64_t panel = v * kLanes / kPanel;
    if (panel >= panels.num) return zero();
    int64_t distance = panels.first[panel] + v * kLanes % kPanel - positions_[q];
    Vec sum = zero();
    if (a_.alibi_slopes) sum = set1(a_.alibi_slopes[head(q)]) * (iota() + set1(float(distance)));
    if (a_.distance_bias) {
      int64_t most = a_.max_distance;
      const float* table = a_.distance_bias + head(q) * (2 * most + 1) + most;
      float of_key[kLanes];
      for (int i = 0; i < kLanes; ++i) of_key[i] = table[std::clamp(distance + i, -most, most)];
      sum += load(of_key);
    }
    return sum;
  }

  void multiply_values(const Panels& panels, const Panels& next, float* state) {
    const Input<E>* weights = reinterpret_cast<const Input<E>*>(scores_);
    int64_t last = seen_[tile_.num_queries - 1].last;
    for_row_groups(tile_.num_queries, [&](auto rows, int64_t q) {
      for_vec_groups<rows()>(layout_.width / kLanes, [&](auto vecs, int64_t v0) {
        float* out = state + q * op_.state_stride_ + v0 * kLanes;
        Vec sums[rows()][vecs()];
        for (int m = 0; m < rows(); ++m)
          for (int v = 0; v < vecs(); ++v)
            sums[m][v] = load(out + m * op_.state_stride_ + v * kLanes) * set1(shrink_[q + m]);
        for (int64_t j = 0; j < panels.num; ++j) {
          const E* values = panels.keys[j] + layout_.to_values();
          int64_t ahead = q == 0 && j < next.num ? (next.keys[j] - values) * int64_t(sizeof(E)) : 0;
          multiply<E, rows(), vecs()>(sums, weights + q * kWeightStride + j * kPanel, kWeightStride,
                                      values + v0 * kLanes * kStep, layout_.width * kStep,
                                      std::min(panels.count[j], last - panels.first[j]), ahead);
        }
        for (int m = 0; m < rows(); ++m)
          for (int v = 0; v < vecs(); ++v) store(out + m * op_.state_stride_ + v * kLanes, sums[m][v]);
      });
    });
  }

  const Attend& op_;
  const AttendArgs& a_;
  const Layout<E>& layout_;
  const Step& step_;
  const Tile& tile_;
  const int64_t kv_head_;
  const int64_t* const table_;
  float* const scores_;       // (queries, kTileKeys); then the weights, as Input<E>, at the beginning of each line
  Input<E>* const queries_;   // (queries, width), scaled
  int64_t positions_[kTileQueries];
  Range seen_[kTileQueries];
  float shrink_[kTileQueries];
};

}  // namespace tgis::TGIS_ISA

// What all operations share, whatever the instruction set: element types, operations, and the table of kernels.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace tgis {

struct bf16 {
  uint16_t bits;
};

enum class Dtype : int32_t { float32 = 0, bfloat16 = 1 };

// Columns of a packed weight that are computed together. Rows in buffers are padded to a multiple of as many elements,
// so a kernel may write whole vectors past the end of a row's last element.
constexpr int64_t kColumns = 32;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows of a step, for one kind of attention. All arrays have one element per row.
struct Rows {
  int64_t num_rows;
  const int64_t* starts;      // position of the first token
  const int64_t* num_tokens;
  const int64_t* num_keys;    // keys of the whole row, those of its own tokens included
  const int64_t* slots;       // the row's line in `tables`
  const int64_t* tables;      // blocks of each slot, in the order of its tokens
  int64_t table_stride;       // elements between the lines of `tables`
};

// A buffer: one row for each token. `stride` is in bytes.
struct Buffer {
  char* data;
  int64_t stride;
  template <class T> T* row(int64_t i) const { return reinterpret_cast<T*>(data + i * stride); }
};

// A buffer whose rows hold several lines of `width` elements: all lines, one after another.
inline Buffer lines_of(const Buffer& buffer, int64_t width, int64_t element_bytes) {
  return {buffer.data, round_up(width, kColumns) * element_bytes};
}

struct Step {
  int64_t num_tokens;
  int32_t num_threads;
  const Buffer* buffers;  // by index; an operation holds the indices of its own
  const Rows* rows;       // by index: self-attention, cross-attention, ...
};

// One operation of a program. For each step, `begin` is called once, then `run` for each item, by any thread, in any
// order. An operation sees the results of all earlier ones.
class Op {
 public:
  virtual ~Op() = default;
  virtual int64_t begin(const Step& step) = 0;  // returns the number of items
  virtual void run(const Step& step, int64_t item) = 0;
};

using OpPtr = std::unique_ptr<Op>;

struct LinearArgs {
  Dtype dtype;          // of the packed weight
  int32_t input, output;  // buffers: inputs as the kernels want them, float32
  int64_t num_inputs, num_outputs;
  const void* weight;   // from `pack`
  const float* bias;    // padded to a multiple of kColumns; may be null
};

enum class NormKind : int32_t { none = 0, rms = 1, layer = 2 };

struct NormArgs {
  Dtype dtype;
  NormKind kind;
  int32_t residual;      // float32; the norm's input, or what is added to
  int32_t addend;        // float32; -1: nothing is added to `residual`
  int32_t output;        // -1: only the sum is wanted
  int32_t to_input;      // whether `output` has the type of a linear layer's input, or float32
  int64_t width;
  const float* weight;   // may be null
  const float* bias;     // may be null
  float eps, scale;      // `scale` multiplies the addend
};

// output = for each token the sums of the squares of its first elements, and of the next ones.
struct SquaresArgs {
  int32_t input, output;  // float32
  int64_t first, second;  // elements
};

// Each of these two parts is divided by the root of its mean square and multiplied by its weight, in place.
struct RescaleArgs {
  int32_t tokens, squares;  // float32
  int64_t first, second;
  float first_count, second_count;  // what the sums of squares are sums of
  const float* weight;              // (first + second,)
  float eps;
};

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu_squared = 4, swigluoai = 5 };

struct ActivationArgs {
  Dtype dtype;
  Activation kind;
  int32_t is_gated;
  int32_t input, output;  // float32, input of a linear layer
  int64_t width;          // of the output
  int64_t num_lines;      // for each token, see `lines_of`; 0: a row
};

enum class Scoring : int32_t { softmax = 0, sigmoid = 1, sparsemixer = 2 };

// How tokens choose experts; see spec.Mixture. Results are written to a buffer of `Chosen`, see experts.h.
struct ChooseArgs {
  Scoring scoring;
  int32_t scores, choice;  // buffers: float32 for each expert, Chosen
  int64_t num_experts, num_chosen, num_groups, num_chosen_groups;
  const float* bias;       // (num_experts,), added to what the choice compares; may be null
  int32_t is_normalized;
  float scale, jitter;
};

// The inputs of the experts, in their order: a line for each pair of a token and an expert that it has chosen.
struct GatherArgs {
  Dtype dtype;
  int32_t choice, input, output;  // inputs of a linear layer
  int64_t num_experts, num_chosen, width;
};

// A linear layer of each expert.
struct ExpertsArgs {
  Dtype dtype;
  int32_t choice, input, output;  // lines, as in GatherArgs: input of a linear layer, float32
  int32_t single;                 // the input if the step has one token, which all its experts share; -1: lines
  int64_t num_experts, num_chosen, num_inputs, num_outputs;
  const void* const* weights;     // of each expert, from `pack`
  const float* biases;            // lines padded to a multiple of kColumns; may be null
};

// output = each expert's result times its weight, summed for each token; plus sigmoid(gate) * shared.
struct CombineArgs {
  int32_t choice, input, output;
  int32_t shared, gate;           // float32; -1: there is none, the factor is 1
  int64_t num_experts, num_chosen, width;
};

struct EmbedArgs {
  Dtype dtype;           // of the table
  int32_t ids, output;   // int64, float32
  int64_t width, first_id, num_rows;  // rows of the table, the first for `first_id`
  const void* table;
  float scale;
  int32_t adds;          // 1: added to `output` instead of replacing it
};

// output = first + second, elementwise; `second` may be -1. Converts to the type of a linear layer's input if `to_input`.
// Inputs are float32.
struct AddArgs {
  Dtype dtype;
  int32_t first, second, output, to_input;
  int64_t width;
  float largest;  // results are limited to +-this, if it is not 0
};

// Keys and values of one layer are blocks of `block_size` tokens. Each KV head of a block has its keys, then its values,
// both in panels as `tile.h` multiplies them; see cache.h.
struct CacheShape {
  Dtype dtype;
  int64_t block_size, num_kv_heads, head_dim;
};

struct WriteArgs {
  CacheShape cache;
  int32_t rows;            // index of the step's rows
  int32_t tokens;          // float32: for each token query heads (if any), keys, values; changed in place
  int64_t num_heads;       // query heads before the keys
  int32_t positions;       // int64: the line of `rotation` for each token; -1: nothing is rotated
  int64_t rotary_dim;
  const void* rotation;    // (lines, 2, rotary_dim) of the cache's dtype: the factors of a head and of its swapped halves
  NormKind norm;           // of each query and key head, before the rotation
  const float* norm_weight;  // (query and key heads, head_dim); may be null
  const float* norm_bias;    // likewise
  float norm_eps;
  void* layer;             // the layer's blocks, unless they are in a buffer:
  int32_t scratch;         // -1: they are not
};

struct AttendArgs {
  CacheShape cache;
  int32_t rows;
  int32_t queries;         // float32: for each token query heads, and possibly more
  int32_t output;          // input of a linear layer: (num_heads, head_dim)
  int64_t num_heads;
  const void* layer;
  float scale, soft_cap;   // no cap: 0
  int32_t is_causal;
  int64_t window;          // 0: none
  const float* alibi_slopes;  // (num_heads,); may be null
  const float* distance_bias;  // (num_heads, 2 * max_distance + 1): for distances from -max_distance on; may be null
  int64_t max_distance;
  const float* sinks;      // (num_heads,); may be null
  int32_t scratch;         // as in WriteArgs
};

// The blocks that an operation reads or writes.
template <class E, class Args> E* layer_of(const Args& args, const Step& step) {
  return static_cast<E*>(args.scratch < 0 ? const_cast<void*>(static_cast<const void*>(args.layer))
                                          : step.buffers[args.scratch].data);
}

enum class Choice : int32_t { greedy = 0, sampled = 1, given = 2 };

// How one row's token is chosen; see engines/sampling/api.py for the order and the meaning of the steps.
struct SamplingRow {
  int64_t allowed;              // its line of `allowed`; -1: all ids are allowed
  int64_t seen;                 // its line of `seen`; -1: no penalty
  int64_t first_end, num_ends;  // of `end_ids`; none: these ids are like others
  int64_t top_k;                // 0: off
  int64_t top_n;                // alternatives in the details
  int64_t detail;               // index of the row's details; -1: none
  double top_p, typical_p;      // 1: off
  double draw;                  // in [0, 1)
  float end_growth;             // relative to the scores' absolute values; negative: ends are dropped
  float penalty, temperature;
  Choice choice;                // given: only the details are wanted
};

struct SamplingArgs {
  const SamplingRow* rows;
  int64_t num_rows, vocab_size;  // at most 2^24 ids
  float* scores;                 // the rows' logits; after the call, dropped ids are -inf
  int64_t stride;                // elements between the rows of `scores`
  const uint8_t* allowed;        // lines of a bit for each id, whole bytes
  const uint8_t* seen;           // lines of a byte for each id
  const int64_t* end_ids;
  int64_t* ids;                  // of each row; read if given
  uint8_t* is_finite;            // of each row: all its logits are
  float* logprobs;               // of each detail, as are the next three
  int64_t* ranks;
  int64_t* top_ids;              // `width` in ascending order, those that are not used -1
  float* top_logprobs;
  int64_t width;
};

// The implementation for one instruction set.
struct Kernels {
  const char* name;
  int32_t input_bytes[2];  // size of an element of a linear layer's input, by Dtype
  int64_t (*packed_bytes)(Dtype, int64_t num_inputs, int64_t num_outputs);
  // Packs columns [first, last) of blocks of kColumns outputs. `weight`: (outputs, inputs), rows `stride` elements apart.
  void (*pack)(Dtype, const void* weight, int64_t stride, int64_t num_inputs, int64_t num_outputs, int64_t first,
               int64_t last, void* packed);
  void (*sample)(const SamplingArgs&, int64_t row);
  OpPtr (*linear)(const LinearArgs&);
  OpPtr (*norm)(const NormArgs&);
  OpPtr (*activation)(const ActivationArgs&);
  OpPtr (*embed)(const EmbedArgs&);
  OpPtr (*add)(const AddArgs&);
  int64_t (*block_bytes)(const CacheShape&);  // of one block of one layer
  OpPtr (*write)(const WriteArgs&);
  OpPtr (*attend)(const AttendArgs&);
  OpPtr (*squares)(const SquaresArgs&);
  OpPtr (*rescale)(const RescaleArgs&);
  OpPtr (*choose)(const ChooseArgs&);
  OpPtr (*order)(const ChooseArgs&);
  OpPtr (*gather)(const GatherArgs&);
  OpPtr (*experts)(const ExpertsArgs&);
  OpPtr (*combine)(const CombineArgs&);
};

// Called by each instruction set's file when the library is loaded.
struct Registration {
  explicit Registration(const Kernels&);
};

}  // namespace tgis

// The kernels of one instruction set: compiled once for each, with its flags and its name as TGIS_ISA.
#include <algorithm>

#include "attention.h"
#include "cache.h"
#include "elementwise.h"
#include "experts.h"
#include "linear.h"
#include "norm.h"
#include "sampling.h"

#define TGIS_TEXT(x) #x
#define TGIS_NAME(x) TGIS_TEXT(x)

namespace tgis::TGIS_ISA {
namespace {

// Calls f with an element of the type that `dtype` names.
template <class F> auto with_dtype(Dtype dtype, F&& f) {
  return dtype == Dtype::bfloat16 ? f(bf16{}) : f(float{});
}

template <template <class> class Operation, class Args> OpPtr make(const Args& args, Dtype dtype) {
  return with_dtype(dtype, [&](auto e) -> OpPtr { return std::make_unique<Operation<decltype(e)>>(args); });
}

template <class E> OpPtr make_activation(const ActivationArgs& args) {
  switch (args.kind) {
    case Activation::silu: return std::make_unique<Activate<E, Activation::silu>>(args);
    case Activation::gelu: return std::make_unique<Activate<E, Activation::gelu>>(args);
    case Activation::gelu_tanh: return std::make_unique<Activate<E, Activation::gelu_tanh>>(args);
    case Activation::relu: return std::make_unique<Activate<E, Activation::relu>>(args);
    case Activation::relu_squared: return std::make_unique<Activate<E, Activation::relu_squared>>(args);
    case Activation::swigluoai: return std::make_unique<Activate<E, Activation::swigluoai>>(args);
  }
  return nullptr;
}

const Kernels kernels{
    TGIS_NAME(TGIS_ISA),
    {sizeof(Input<float>), sizeof(Input<bf16>)},
    [](Dtype dtype, int64_t num_inputs, int64_t num_outputs) {
      return with_dtype(dtype, [&](auto e) -> int64_t {
        int64_t blocks = (num_outputs + kColumns - 1) / kColumns;
        return blocks * block_elements<decltype(e)>(num_inputs) * sizeof(e);
      });
    },
    [](Dtype dtype, const void* weight, int64_t stride, int64_t num_inputs, int64_t num_outputs, int64_t first,
       int64_t last, void* packed) {
      with_dtype(dtype, [&](auto e) {
        using E = decltype(e);
        pack(static_cast<const E*>(weight), stride, num_inputs, num_outputs, first, last, static_cast<E*>(packed));
      });
    },
    sample,
    [](const LinearArgs& args) { return make<Linear>(args, args.dtype); },
    [](const NormArgs& args) { return make<Norm>(args, args.dtype); },
    [](const ActivationArgs& args) {
      return with_dtype(args.dtype, [&](auto e) { return make_activation<decltype(e)>(args); });
    },
    [](const EmbedArgs& args) { return make<Embed>(args, args.dtype); },
    [](const AddArgs& args) { return make<Add>(args, args.dtype); },
    [](const CacheShape& shape) {
      return with_dtype(shape.dtype, [&](auto e) -> int64_t {
        return Layout<decltype(e)>(shape).block_elements * sizeof(e);
      });
    },
    [](const WriteArgs& args) { return make<Write>(args, args.cache.dtype); },
    [](const AttendArgs& args) { return make<Attend>(args, args.cache.dtype); },
    [](const SquaresArgs& args) -> OpPtr { return std::make_unique<Squares>(args); },
    [](const RescaleArgs& args) -> OpPtr { return std::make_unique<Rescale>(args); },
    [](const ChooseArgs& args) -> OpPtr { return std::make_unique<Choose>(args); },
    [](const ChooseArgs& args) -> OpPtr { return std::make_unique<Order>(args); },
    [](const GatherArgs& args) { return make<Gather>(args, args.dtype); },
    [](const ExpertsArgs& args) { return make<Experts>(args, args.dtype); },
    [](const CombineArgs& args) -> OpPtr { return std::make_unique<Combine>(args); },
};

const Registration registration(kernels);

}  // namespace
}  // namespace tgis::TGIS_ISA

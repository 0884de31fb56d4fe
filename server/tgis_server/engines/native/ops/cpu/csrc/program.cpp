// Programs: sequences of operations that a team runs in one call. And what Python calls.
#include <pthread.h>

#include <cstring>
#include <new>

#include "core.h"
#include "team.h"

namespace tgis {

struct Program {
  explicit Program(const Kernels& kernels) : kernels(kernels) {}
  const Kernels& kernels;
  std::vector<OpPtr> ops;
};

namespace {

// The items of one operation that a thread takes first, one after another, so that it reads memory in order. Then it
// takes those of other threads: one core is often slower than another.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

std::vector<const Kernels*>& registered() {
  static std::vector<const Kernels*> all;
  return all;
}

std::mutex team_mutex;  // one program at a time
std::unique_ptr<Team> team;

Team& team_of(int size) {
  // A child process has none of the threads.
  static const int at_fork = pthread_atfork(nullptr, nullptr, [] { static_cast<void>(team.release()); });
  static_cast<void>(at_fork);
  if (!team || team->wanted() != size) {
    team.reset();
    team = std::make_unique<Team>(size);
  }
  return *team;
}

// Runs f, whose exceptions must not pass into Python; returns the kind of failure that `interface.py` raises.
template <class F> int32_t guard(F&& f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  } catch (...) {
    return 2;
  }
}

// The same on any thread of a job, whose other threads go on.
template <class F> void attempt(std::atomic<bool>& is_failed, F&& f) {
  if (guard(f) != 0) is_failed.store(true, std::memory_order_relaxed);
}

// Runs operations [first, last) of a program.
void run(Program& program, int64_t first, int64_t last, const Step& step, Team& team) {
  static std::vector<Share> shares;  // by operation, then thread; used by one program at a time
  int64_t size = team.size(), num_ops = last - first;
  if (int64_t(shares.size()) < num_ops * size) shares = std::vector<Share>(num_ops * size);
  for (int64_t i = 0; i < num_ops; ++i) {
    int64_t num_items = program.ops[first + i]->begin(step);
    for (int64_t thread = 0; thread < size; ++thread) {
      Share& share = shares[i * size + thread];
      share.next.store(num_items * thread / size, std::memory_order_relaxed);
      share.end = num_items * (thread + 1) / size;
    }
  }
  std::atomic<bool> is_failed{false};
  team.run([&](int thread) {
    for (int64_t i = 0; i < num_ops; ++i) {
      if (shares[(i + 1) * size - 1].end == 0) continue;
      for (int64_t other = 0; other < size; ++other) {
        Share& share = shares[i * size + (thread + other) % size];
        for (int64_t item; (item = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
          attempt(is_failed, [&] { program.ops[first + i]->run(step, item); });
      }
      if (i + 1 < num_ops) team.barrier();
    }
  });
  if (is_failed) throw std::bad_alloc();  // memory for intermediate results is all that threads ask for
}

}  // namespace

Registration::Registration(const Kernels& kernels) { registered().push_back(&kernels); }

}  // namespace tgis

// -- What Python calls, with the structures of core.h as they are laid out in C

using namespace tgis;

extern "C" {

#ifndef TGIS_VERSION
#define TGIS_VERSION "unknown"
#endif
// A digest of all sources. Python uses a library only if it was compiled from the sources beside it.
const char* tgis_version() { return "tgis sources " TGIS_VERSION; }
const Kernels* tgis_kernels(const char* name) {
  for (const Kernels* kernels : registered())
    if (!std::strcmp(kernels->name, name)) return kernels;
  return nullptr;
}
int32_t tgis_input_bytes(const Kernels* kernels, int32_t dtype) { return kernels->input_bytes[dtype]; }
int64_t tgis_packed_bytes(const Kernels* kernels, int32_t dtype, int64_t num_inputs, int64_t num_outputs) {
  return kernels->packed_bytes(Dtype(dtype), num_inputs, num_outputs);
}
int32_t tgis_pack(const Kernels* kernels, int32_t dtype, const void* weight, int64_t stride, int64_t num_inputs,
                  int64_t num_outputs, void* packed, int32_t num_threads) {
  int64_t blocks = (num_outputs + kColumns - 1) / kColumns;
  std::atomic<int64_t> next{0};
  std::lock_guard lock(team_mutex);
  return guard([&] {
    team_of(num_threads).run([&](int) {
      for (int64_t block; (block = next.fetch_add(1)) < blocks;)
        kernels->pack(Dtype(dtype), weight, stride, num_inputs, num_outputs, block, block + 1, packed);
    });
  });
}
int32_t tgis_sample(const Kernels* kernels, const SamplingArgs* args, int32_t num_threads) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> is_failed{false};
  std::lock_guard lock(team_mutex);
  return guard([&] {
    team_of(num_threads).run([&](int) {
      for (int64_t row; (row = next.fetch_add(1)) < args->num_rows;)
        attempt(is_failed, [&] { kernels->sample(*args, row); });
    });
    if (is_failed) throw std::bad_alloc();
  });
}
Program* tgis_new_program(const Kernels* kernels) { return new Program(*kernels); }
void tgis_delete_program(Program* program) { delete program; }
int64_t tgis_num_ops(const Program* program) { return int64_t(program->ops.size()); }
void tgis_linear(Program* p, const LinearArgs* args) { p->ops.push_back(p->kernels.linear(*args)); }
void tgis_norm(Program* p, const NormArgs* args) { p->ops.push_back(p->kernels.norm(*args)); }
void tgis_activation(Program* p, const ActivationArgs* args) { p->ops.push_back(p->kernels.activation(*args)); }
void tgis_embed(Program* p, const EmbedArgs* args) { p->ops.push_back(p->kernels.embed(*args)); }
void tgis_add(Program* p, const AddArgs* args) { p->ops.push_back(p->kernels.add(*args)); }
void tgis_squares(Program* p, const SquaresArgs* args) { p->ops.push_back(p->kernels.squares(*args)); }
void tgis_rescale(Program* p, const RescaleArgs* args) { p->ops.push_back(p->kernels.rescale(*args)); }
void tgis_choose(Program* p, const ChooseArgs* args) {
  p->ops.push_back(p->kernels.choose(*args));
  p->ops.push_back(p->kernels.order(*args));
}
void tgis_gather(Program* p, const GatherArgs* args) { p->ops.push_back(p->kernels.gather(*args)); }
void tgis_experts(Program* p, const ExpertsArgs* args) { p->ops.push_back(p->kernels.experts(*args)); }
void tgis_combine(Program* p, const CombineArgs* args) { p->ops.push_back(p->kernels.combine(*args)); }
int64_t tgis_block_bytes(const Kernels* kernels, const CacheShape* shape) { return kernels->block_bytes(*shape); }
void tgis_write(Program* p, const WriteArgs* args) { p->ops.push_back(p->kernels.write(*args)); }
void tgis_attend(Program* p, const AttendArgs* args) { p->ops.push_back(p->kernels.attend(*args)); }
int32_t tgis_run(Program* program, int64_t first, int64_t last, const Step* step) {
  std::lock_guard lock(team_mutex);
  return guard([&] { run(*program, first, last, *step, team_of(step->num_threads)); });
}
}

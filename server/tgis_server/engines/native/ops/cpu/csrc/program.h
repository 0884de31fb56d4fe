// Programs: sequences of operations that a team runs in one call. And what Python calls.
#pragma once
#include "core.h"
#include "team.h"

namespace tgis {

struct Program {
  explicit Program(const Kernels& kernels) : kernels(kernels) {}
  const Kernels& kernels;
  std::vector<OpPtr> ops;
};

// Runs operations [first, last) of a program.
void run(Program& program, int64_t first, int64_t last, const Step& step, Team& team);

}  // namespace tgis

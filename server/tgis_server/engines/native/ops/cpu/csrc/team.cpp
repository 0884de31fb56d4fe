#include "team.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <system_error>

namespace tgis {
namespace {

// After a program another one usually follows at once: first the layers, then the head, then the next step.
constexpr auto kSpin = std::chrono::microseconds(100);
// A thread that waits for longer than this within a program is probably waiting for one that has lost its core.
constexpr int kPausesBeforeYield = 2000;

void wait_on(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

Team::Team(int wanted) : wanted_(wanted) {
  try {
    for (int thread = 1; thread < wanted; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (const std::system_error&) {
  }
}

Team::~Team() {
  is_ending_ = true;
  generation_.fetch_add(1);
  wake_all(generation_);
  for (auto& worker : workers_) worker.join();
}

void Team::run(const std::function<void(int)>& job) {
  if (workers_.empty()) return job(0);
  job_ = &job;
  generation_.fetch_add(1);  // sequentially consistent, as is num_sleeping_: a worker sees the one, or we see the other
  if (num_sleeping_.load() > 0) wake_all(generation_);
  job(0);
  barrier();
}

void Team::barrier() {
  if (workers_.empty()) return;
  uint32_t phase = phase_.load(std::memory_order_acquire);
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    num_arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int pauses = 0; phase_.load(std::memory_order_acquire) == phase; ++pauses) {
    if (pauses < kPausesBeforeYield) _mm_pause();
    else std::this_thread::yield();
  }
}

void Team::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    auto spin_until = std::chrono::steady_clock::now() + kSpin;
    while (generation_.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 50; ++i) _mm_pause();
      if (std::chrono::steady_clock::now() < spin_until) continue;
      num_sleeping_.fetch_add(1);
      while (generation_.load() == seen) wait_on(generation_, seen);
      num_sleeping_.fetch_sub(1);
    }
    ++seen;
    if (is_ending_) return;
    (*job_)(thread);
    barrier();
  }
}

}  // namespace tgis

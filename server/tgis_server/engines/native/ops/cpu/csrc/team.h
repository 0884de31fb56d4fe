// The threads of a process that run programs: they spin while a program runs and shortly afterwards, and sleep otherwise.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tgis {

class Team {
 public:
  explicit Team(int wanted);  // threads, the caller's included; fewer if the system has no more
  ~Team();
  int size() const { return int(workers_.size()) + 1; }
  int wanted() const { return wanted_; }

  // Calls job(thread) on every thread, as thread 0 on the caller's; returns when all have returned.
  void run(const std::function<void(int)>& job);

  // Within a job: waits until every thread has come here.
  void barrier();

 private:
  void work(int thread);

  const int wanted_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};  // a new number: a job, or the end
  alignas(64) std::atomic<int> num_sleeping_{0};
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<bool> is_ending_{false};
};

}  // namespace tgis

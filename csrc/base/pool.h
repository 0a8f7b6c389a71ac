// A thread pool for steps of a few microseconds: pthreads and a futex, nothing of libstdc++ at run time.
//
// The caller of parallel_for takes part and can do all the work alone; workers only help. A step is cut into
// chunks, which are claimed one by one by compare-and-swap on a ticket that also carries the step's number, so a
// worker that was descheduled with an old step in hand can neither claim from a new one nor hold it up.
//
// Workers spin while a run lasts (between begin and end) and sleep in a futex otherwise.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <new>

#include "float_env.h"

namespace opcel {

inline int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/// CPUs this process may use: its affinity mask, bounded by the CPU quota of its control group (rounded up).
inline int32_t usable_cpus() {
  static constexpr size_t kMaskBytes = 8192 / 8;
  alignas(cpu_set_t) unsigned char mask[kMaskBytes] = {};
  int32_t count = 1;
  if (sched_getaffinity(0, kMaskBytes, reinterpret_cast<cpu_set_t*>(mask)) == 0)
    count = CPU_COUNT_S(kMaskBytes, reinterpret_cast<cpu_set_t*>(mask));
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "re")) {
    long long quota = 0, period = 0;
    if (fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0 && quota < count * period)
      count = static_cast<int32_t>((quota + period - 1) / period);
    fclose(file);
  }
  return count > 0 ? count : 1;
}

class Pool {
 public:
  /// Does the tasks [begin, end); `thread` is 0 for the caller and 1 .. threads-1 for workers.
  using Kernel = void (*)(void* const* pointers, const int64_t* integers, int64_t begin, int64_t end,
                          int32_t thread);

  /// A pool of `threads`, the caller included; 0 or less: usable_cpus(). Fewer when the system gives fewer. Null
  /// when there is no memory.
  static Pool* create(int32_t threads) {
    if (threads <= 0) threads = usable_cpus();
    if (threads > kMaxThreads) threads = kMaxThreads;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignof(Pool), sizeof(Pool) + sizeof(Worker) * threads) != 0) return nullptr;
    Pool* pool = new (memory) Pool;
    pool->workers_ = reinterpret_cast<Worker*>(pool + 1);
    // Signals belong to the threads of the embedding program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool->threads_ < threads; ++pool->threads_) {
      Worker* worker = pool->workers_ + pool->threads_;
      worker->pool = pool;
      worker->index = pool->threads_;
      if (pthread_create(&worker->thread, nullptr, &Pool::start, worker) != 0) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return pool;
  }

  /// Ends the workers. No run may be in progress.
  void destroy() {
    stop_.store(true);
    wake();
    for (int32_t i = 1; i < threads_; ++i) pthread_join(workers_[i].thread, nullptr);
    this->~Pool();
    ::free(this);
  }

  int32_t threads() const { return threads_; }

  /// Announces a run: wakes the workers, which then spin until the last run has ended.
  void begin() {
    if (active_.fetch_add(1) + 1 < threads_) wake_sleepers();
  }
  void end() { active_.fetch_sub(1); }

  /// Runs all the tasks and returns when they are done. Safe from any thread; when another caller's step holds the
  /// workers, or there are as many runs as threads, the caller does its tasks alone.
  void parallel_for(Kernel kernel, void* const* pointers, const int64_t* integers, int64_t tasks) {
    if (tasks <= 0) return;
    if (tasks == 1 || threads_ == 1 || active_.load(std::memory_order_relaxed) > threads_ - 1 ||
        busy_.exchange(true, std::memory_order_acquire)) {
      kernel(pointers, integers, 0, tasks, 0);
      return;
    }
    // Sixteen chunks a thread leave at most some 3 % of a step to wait for at its end.
    const int64_t wanted = int64_t{threads_} * 16;
    const int64_t chunk = (tasks + wanted - 1) / wanted;
    const int64_t chunks = (tasks + chunk - 1) / chunk;
    kernel_.store(kernel, std::memory_order_relaxed);
    pointers_.store(pointers, std::memory_order_relaxed);
    integers_.store(integers, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    chunk_.store(chunk, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    step_ = (step_ + 1) & 0xffffffff;
    ticket_.store(step_ << 32 | static_cast<uint64_t>(chunks));
    wake_sleepers();
    const int64_t own = take_chunks(0);
    wait_for_workers(chunks - own);
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct Worker {
    Pool* pool;
    int32_t index;
    pthread_t thread;
  };

  static constexpr int32_t kMaxThreads = 2048;  // 16 chunks each must fit the ticket's 16 bits
  static constexpr int64_t kPauseNs = 20000;     // spin this long without giving the CPU to others
  static constexpr int64_t kAfterRunNs = 30000;  // stay awake this long for the next run
  static constexpr int64_t kStarvedNs = 1000000; // sleep even in a run after this long without a step

  Pool() = default;
  ~Pool() = default;

  // ticket: step number (32 bits), chunks claimed (16), chunks in all (16)
  static constexpr uint64_t kOneClaimed = uint64_t{1} << 16;
  static int64_t claimed(uint64_t ticket) { return static_cast<int64_t>(ticket >> 16 & 0xffff); }
  static int64_t total(uint64_t ticket) { return static_cast<int64_t>(ticket & 0xffff); }

  static void* start(void* argument) {
    Worker* worker = static_cast<Worker*>(argument);
    set_float_mode(kDefaultFloatMode);
    worker->pool->work(worker->index);
    return nullptr;
  }

  /// Claims and does chunks until none is left; returns how many it did.
  int64_t take_chunks(int32_t thread) {
    int64_t did = 0;
    for (;;) {
      uint64_t ticket = ticket_.load(std::memory_order_acquire);
      if (claimed(ticket) >= total(ticket)) return did;
      const Kernel kernel = kernel_.load(std::memory_order_relaxed);
      void* const* pointers = pointers_.load(std::memory_order_relaxed);
      const int64_t* integers = integers_.load(std::memory_order_relaxed);
      const int64_t tasks = tasks_.load(std::memory_order_relaxed);
      const int64_t chunk = chunk_.load(std::memory_order_relaxed);
      // These are written only while every chunk is claimed: an unchanged ticket proves they are of this step.
      std::atomic_thread_fence(std::memory_order_acquire);
      if (!ticket_.compare_exchange_strong(ticket, ticket + kOneClaimed, std::memory_order_acq_rel)) continue;
      const int64_t begin = claimed(ticket) * chunk;
      const int64_t end = begin + chunk < tasks ? begin + chunk : tasks;
      kernel(pointers, integers, begin, end, thread);
      ++did;
      if (thread != 0) done_.fetch_add(1, std::memory_order_release);
    }
  }

  /// Waits for chunks that workers are computing at this moment.
  void wait_for_workers(int64_t chunks) {
    if (done_.load(std::memory_order_acquire) == chunks) return;
    const int64_t since = now_ns();
    for (uint32_t spins = 1; done_.load(std::memory_order_acquire) != chunks; ++spins) {
      if (spins % 32 == 0 && now_ns() - since > kPauseNs)
        sched_yield();
      else
        cpu_relax();
    }
  }

  void work(int32_t index) {
    while (!stop_.load(std::memory_order_relaxed)) {
      take_chunks(index);
      if (!spin_for_step()) sleep();
    }
  }

  bool step_open() const {
    const uint64_t ticket = ticket_.load(std::memory_order_acquire);
    return claimed(ticket) < total(ticket);
  }

  /// True as soon as there is a step to help with, false when it is time to sleep.
  bool spin_for_step() {
    const int64_t since = now_ns();
    int64_t last_active = since;
    for (;;) {
      for (int i = 0; i < 32; ++i) {
        if (step_open()) return true;
        cpu_relax();
      }
      const int64_t now = now_ns();
      if (active_.load(std::memory_order_relaxed) > 0) last_active = now;
      if (now - last_active > kAfterRunNs || now - since > kStarvedNs) return false;
      if (now - since > kPauseNs) sched_yield();
    }
  }

  void sleep() {
    const uint32_t epoch = epoch_.load();
    sleepers_.fetch_add(1);
    if (step_open() || stop_.load()) return;
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAIT_PRIVATE, epoch, nullptr, nullptr, 0);
  }

  void wake_sleepers() {
    // Reset here and not by the woken, which take a while: the next step must not make the system call again.
    if (sleepers_.load() != 0 && sleepers_.exchange(0) != 0) wake();
  }

  void wake() {
    epoch_.fetch_add(1);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

  // Each group is written by others than read the next one.
  alignas(128) std::atomic<uint64_t> ticket_{0};
  std::atomic<Kernel> kernel_{nullptr};
  std::atomic<void* const*> pointers_{nullptr};
  std::atomic<const int64_t*> integers_{nullptr};
  std::atomic<int64_t> tasks_{0};
  std::atomic<int64_t> chunk_{0};
  alignas(128) std::atomic<int64_t> done_{0};  // chunks that workers finished
  alignas(128) std::atomic<int32_t> active_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  uint64_t step_ = 0;  // guarded by busy_
  int32_t threads_ = 1;
  Worker* workers_ = nullptr;
};

}  // namespace opcel

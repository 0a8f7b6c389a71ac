// A thread pool for steps of a few microseconds: pthreads and a futex, nothing of libstdc++ at run time.
//
// The caller of parallel_for takes part and can do all the work alone; workers only help. A step is cut into
// chunks, and each thread has a range of them: the same part of every step, so that its cache still holds what it
// wrote in the step before. A thread that is through with its range takes from the others'. A claim is one
// compare-and-swap on the range's next chunk together with the step's number, so a worker that was descheduled with
// an old step in hand can neither claim from a new one nor hold it up.
//
// Workers spin while a run lasts (between begin and end) and a little longer, then sleep in a futex. To wake one costs
// the caller more than a small network takes. So a run that finds them asleep begins alone, and wakes them once it has
// lasted as long as waking takes, or at once when runs follow one another closely.
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

/// A set of up to 8192 CPUs.
struct CpuMask {
  static constexpr size_t kBytes = 8192 / 8;
  alignas(cpu_set_t) unsigned char bytes[kBytes] = {};

  cpu_set_t* set() { return reinterpret_cast<cpu_set_t*>(bytes); }
  /// Those that the calling thread may use.
  bool read() { return sched_getaffinity(0, kBytes, set()) == 0; }
};

/// CPUs this process may use: its affinity mask, bounded by the CPU quota of its control group (rounded up).
inline int32_t usable_cpus() {
  CpuMask mask;
  int32_t count = mask.read() ? CPU_COUNT_S(CpuMask::kBytes, mask.set()) : 1;
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

  /// A pool of `threads`, the caller included; 0 or less: usable_cpus(). Fewer when the system gives fewer. Null when
  /// there is no memory. `pin`: each worker stays on a CPU of its own, as far as there are any besides the one that the
  /// caller is on.
  static Pool* create(int32_t threads, bool pin = false) {
    if (threads <= 0) threads = usable_cpus();
    if (threads > kMaxThreads) threads = kMaxThreads;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignof(Pool), sizeof(Pool) + sizeof(Worker) * threads) != 0) return nullptr;
    Pool* pool = new (memory) Pool;
    pool->workers_ = reinterpret_cast<Worker*>(pool + 1);
    for (int32_t i = 0; i < threads; ++i) new (pool->workers_ + i) Worker;
    // Signals belong to the threads of the embedding program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    for (; pool->threads_ < threads; ++pool->threads_) {
      Worker* worker = pool->workers_ + pool->threads_;
      worker->pool = pool;
      worker->index = pool->threads_;
      if (pthread_create(&worker->thread, &attributes, &Pool::start, worker) != 0) break;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pin) pool->pin_workers();
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

  /// Announces a run: workers that are awake spin until the last run has ended.
  void begin() {
    active_.fetch_add(1);
    if (sleepers_.load(std::memory_order_relaxed) == 0) return;
    const int64_t now = now_ns();
    if (now - began_.exchange(now, std::memory_order_relaxed) < kAfterRunNs) wake_sleepers();
  }
  void end() { active_.fetch_sub(1); }

  /// Runs all the tasks and returns when they are done. Safe from any thread; when another caller's step holds the
  /// workers, or there are as many runs as threads, the caller does its tasks alone.
  void parallel_for(Kernel kernel, void* const* pointers, const int64_t* integers, int64_t tasks) {
    if (tasks <= 0) return;
    // Sixteen chunks a thread leave at most some 6 % of a thread's part to wait for at the end.
    const int64_t wanted = int64_t{threads_} * 16;
    const int64_t chunk = (tasks + wanted - 1) / wanted;
    const bool shared = tasks > 1 && threads_ > 1 && active_.load(std::memory_order_relaxed) < threads_;
    int64_t first = 0;
    if (shared && sleepers_.load(std::memory_order_relaxed) != 0) {
      const int64_t until = began_.load(std::memory_order_relaxed) + kAloneNs, piece = (tasks + 7) / 8;
      while (first < tasks && now_ns() < until) {
        const int64_t next = first + piece < tasks ? first + piece : tasks;
        kernel(pointers, integers, first, next, 0);
        first = next;
      }
    }
    if (!shared || tasks - first <= 1 || busy_.exchange(true, std::memory_order_acquire)) {
      if (first < tasks) kernel(pointers, integers, first, tasks, 0);
      return;
    }
    const Step step{number_.load(std::memory_order_relaxed) + 2, kernel, pointers, integers, first, tasks, chunk,
                    (tasks - first + chunk - 1) / chunk};
    done_.store(0, std::memory_order_relaxed);
    publish(step);
    wake_sleepers();
    wait_for_workers(step.chunks - take_chunks(step, 0));
    busy_.store(false, std::memory_order_release);
  }

 private:
  struct Step {
    uint32_t number;
    Kernel kernel;
    void* const* pointers;
    const int64_t* integers;
    int64_t first, tasks;  // the tasks [first, tasks)
    int64_t chunk;   // tasks in each chunk but the last
    int64_t chunks;  // at most 16 for each thread
  };

  struct alignas(128) Worker {
    std::atomic<uint64_t> next{0};  // step number (32 bits), next chunk of this thread's range (32)
    Pool* pool = nullptr;
    int32_t index = 0;
    pthread_t thread{};
  };

  static constexpr int32_t kMaxThreads = 4096;
  static constexpr size_t kStackBytes = size_t{2} << 20;  // kernels keep up to 1 MB of scratch on the stack
  static constexpr int64_t kPauseNs = 20000;     // spin this long without giving the CPU to others
  static constexpr int64_t kAfterRunNs = 100000; // stay awake this long for the next run
  static constexpr int64_t kAloneNs = 15000;     // what waking a worker takes
  static constexpr int64_t kStarvedNs = 1000000; // sleep even in a run after this long without a step

  Pool() = default;
  ~Pool() = default;

  static void* start(void* argument) {
    Worker* worker = static_cast<Worker*>(argument);
    set_float_mode(kDefaultFloatMode);
    worker->pool->work(worker->index);
    return nullptr;
  }

  /// The step's number is odd while its members are being written.
  void publish(const Step& step) {
    number_.store(step.number - 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    kernel_.store(step.kernel, std::memory_order_relaxed);
    pointers_.store(step.pointers, std::memory_order_relaxed);
    integers_.store(step.integers, std::memory_order_relaxed);
    first_.store(step.first, std::memory_order_relaxed);
    tasks_.store(step.tasks, std::memory_order_relaxed);
    chunk_.store(step.chunk, std::memory_order_relaxed);
    number_.store(step.number);
  }

  /// Reads the step of this number; false when it is no longer the current one.
  bool read_step(uint32_t number, Step* step) const {
    const int64_t first = first_.load(std::memory_order_relaxed), tasks = tasks_.load(std::memory_order_relaxed);
    const int64_t chunk = chunk_.load(std::memory_order_relaxed);
    *step = {number, kernel_.load(std::memory_order_relaxed), pointers_.load(std::memory_order_relaxed),
             integers_.load(std::memory_order_relaxed), first, tasks, chunk,
             chunk ? (tasks - first + chunk - 1) / chunk : 0};
    std::atomic_thread_fence(std::memory_order_acquire);
    return number_.load(std::memory_order_relaxed) == number;
  }

  /// Claims a chunk of the range of `owner`; -1 when none is left. A range whose word is of an older step has not been
  /// touched in this one. A worker may come late and see the word of a newer step; the caller cannot.
  int64_t claim(const Step& step, int32_t owner, bool is_caller) {
    const int64_t begin = step.chunks * owner / threads_, end = step.chunks * (owner + 1) / threads_;
    std::atomic<uint64_t>& word = workers_[owner].next;
    uint64_t seen = word.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t number = static_cast<uint32_t>(seen >> 32);
      if (!is_caller && static_cast<int32_t>(number - step.number) > 0) return -1;
      const int64_t next = number == step.number ? static_cast<int64_t>(seen & 0xffffffff) : begin;
      if (next >= end) return -1;
      const uint64_t claimed = uint64_t{step.number} << 32 | static_cast<uint64_t>(next + 1);
      if (word.compare_exchange_weak(seen, claimed, std::memory_order_acq_rel, std::memory_order_acquire)) return next;
    }
  }

  /// Claims and does chunks until none is left; returns how many it did.
  int64_t take_chunks(const Step& step, int32_t thread) {
    int64_t did = 0;
    for (int32_t i = 0; i < threads_; ++i) {
      const int32_t owner = thread + i < threads_ ? thread + i : thread + i - threads_;
      const int64_t before = did;
      for (int64_t chunk; (chunk = claim(step, owner, thread == 0)) >= 0; ++did) {
        const int64_t begin = step.first + chunk * step.chunk, end = begin + step.chunk;
        step.kernel(step.pointers, step.integers, begin, end < step.tasks ? end : step.tasks, thread);
      }
      if (thread != 0 && did != before) done_.fetch_add(did - before, std::memory_order_release);
    }
    return did;
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
    uint32_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      const uint32_t number = number_.load(std::memory_order_acquire);
      if (number == seen || number % 2 != 0) {
        if (!spin_for_step(seen)) sleep(seen);
        continue;
      }
      seen = number;
      Step step;
      if (read_step(number, &step)) take_chunks(step, index);
    }
  }

  /// True as soon as there is another step than the one seen last, false when it is time to sleep.
  bool spin_for_step(uint32_t seen) {
    const int64_t since = now_ns();
    int64_t last_active = since;
    for (;;) {
      for (int i = 0; i < 32; ++i) {
        const uint32_t number = number_.load(std::memory_order_relaxed);
        if (number != seen && number % 2 == 0) return true;
        cpu_relax();
      }
      const int64_t now = now_ns();
      if (active_.load(std::memory_order_relaxed) > 0) last_active = now;
      if (now - last_active > kAfterRunNs || now - since > kStarvedNs) return false;
      if (now - since > kPauseNs) sched_yield();
    }
  }

  void sleep(uint32_t seen) {
    const uint32_t epoch = epoch_.load();
    sleepers_.fetch_add(1);
    if (number_.load() != seen || stop_.load()) return;
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAIT_PRIVATE, epoch, nullptr, nullptr, 0);
    leave_callers_cpu();
  }

  /// The kernel often wakes a thread on the CPU of the one that wakes it, where both would stay for milliseconds: each
  /// waiting for the other to be given the CPU.
  void leave_callers_cpu() {
    const int cpu = sched_getcpu();
    CpuMask allowed, others;
    if (cpu < 0 || cpu != caller_cpu_.load(std::memory_order_relaxed) || !allowed.read()) return;
    others = allowed;
    CPU_CLR_S(cpu, CpuMask::kBytes, others.set());
    if (CPU_COUNT_S(CpuMask::kBytes, others.set()) == 0) return;
    if (sched_setaffinity(0, CpuMask::kBytes, others.set()) == 0) sched_setaffinity(0, CpuMask::kBytes, allowed.set());
  }

  void wake_sleepers() {
    // Reset here and not by the woken, which take a while: the next step must not make the system call again.
    if (sleepers_.load() == 0 || sleepers_.exchange(0) == 0) return;
    caller_cpu_.store(sched_getcpu(), std::memory_order_relaxed);
    wake();
  }

  void pin_workers() {
    CpuMask allowed;
    if (!allowed.read()) return;
    const int here = sched_getcpu();
    int32_t index = 1;
    for (int cpu = 0; cpu < 8 * int(CpuMask::kBytes) && index < threads_; ++cpu) {
      if (cpu == here || !CPU_ISSET_S(cpu, CpuMask::kBytes, allowed.set())) continue;
      CpuMask one;
      CPU_SET_S(cpu, CpuMask::kBytes, one.set());
      pthread_setaffinity_np(workers_[index++].thread, CpuMask::kBytes, one.set());
    }
  }

  void wake() {
    epoch_.fetch_add(1);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

  // The current step, guarded by busy_ for writing; then groups that different threads write.
  alignas(128) std::atomic<uint32_t> number_{0};
  std::atomic<Kernel> kernel_{nullptr};
  std::atomic<void* const*> pointers_{nullptr};
  std::atomic<const int64_t*> integers_{nullptr};
  std::atomic<int64_t> first_{0};
  std::atomic<int64_t> tasks_{0};
  std::atomic<int64_t> chunk_{0};
  alignas(128) std::atomic<int64_t> done_{0};  // chunks that workers finished
  alignas(128) std::atomic<int32_t> active_{0};
  std::atomic<int64_t> began_{0};  // the last run that found workers asleep
  std::atomic<int> caller_cpu_{-1};  // of the one that woke workers last
  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  int32_t threads_ = 1;
  Worker* workers_ = nullptr;
};

}  // namespace opcel

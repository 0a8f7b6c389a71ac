// The threads of the process, shared between models.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "base/pool.h"
#include "runtime/opcel.h"

namespace opcel::bindings {

/// Threads that live as long as the process, so that every model of a thread count shares them.
class SharedPool {
 public:
  static std::shared_ptr<SharedPool> get(int32_t threads, bool pin) {
    static auto* mutex = new std::mutex;
    static auto* pools = new std::map<std::pair<int32_t, bool>, std::shared_ptr<SharedPool>>;
    if (threads <= 0) threads = opcel::usable_cpus();
    const std::lock_guard<std::mutex> lock(*mutex);
    std::shared_ptr<SharedPool>& pool = (*pools)[{threads, pin}];
    if (!pool) pool = std::make_shared<SharedPool>(threads, pin);
    return pool;
  }

  SharedPool(int32_t threads, bool pin) : pool_(opcel::Pool::create(threads, pin)) {
    if (!pool_) throw std::bad_alloc();
  }

  int32_t threads() const { return pool_->threads(); }

  void lend(opcel_host* host) const {
    host->threads = pool_->threads();
    host->pool = pool_;
    host->begin = [](void* pool) { static_cast<opcel::Pool*>(pool)->begin(); };
    host->end = [](void* pool) { static_cast<opcel::Pool*>(pool)->end(); };
    host->parallel_for = [](void* pool, opcel_kernel kernel, void* const* pointers, const int64_t* integers,
                            int64_t tasks) {
      static_cast<opcel::Pool*>(pool)->parallel_for(kernel, pointers, integers, tasks);
    };
  }

 private:
  opcel::Pool* pool_;
};

}  // namespace opcel::bindings

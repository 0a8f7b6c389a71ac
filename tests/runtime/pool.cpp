// Several callers on one pool: each task is done exactly once, by a thread index in range.
#include "base/pool.h"

#include <cstdio>
#include <cstring>

namespace {

constexpr int kCallers = 3, kTasks = 300;
int32_t threads;

void count(void* const* p, const int64_t* nanoseconds, int64_t begin, int64_t end, int32_t thread) {
  unsigned char* done = static_cast<unsigned char*>(p[0]);
  for (const int64_t until = *nanoseconds ? opcel::now_ns() + *nanoseconds : 0; until && opcel::now_ns() < until;) {
  }
  for (int64_t i = begin; i < end; ++i) done[i] = static_cast<unsigned char>(done[i] + (thread < threads ? 1 : 100));
}

void* call(void* pool_pointer) {
  opcel::Pool* pool = static_cast<opcel::Pool*>(pool_pointer);
  unsigned char done[kTasks];
  void* p[] = {done};
  long wrong = 0;
  for (int round = 0; round < 1500; ++round) {
    const int64_t tasks = round * 37 % (kTasks + 1);
    memset(done, 0, sizeof done);
    if (round % 100 == 0) usleep(400);  // long enough for the workers to fall asleep
    // A slow run begins alone and wakes them in the middle of a step.
    const int64_t nanoseconds = round % 200 == 0 ? 2000 : 0;
    pool->begin();
    for (int step = 0; step < 3; ++step) pool->parallel_for(count, p, &nanoseconds, tasks);
    pool->end();
    for (int64_t i = 0; i < kTasks; ++i) wrong += done[i] != (i < tasks ? 3 : 0);
  }
  return reinterpret_cast<void*>(wrong);
}

}  // namespace

int main() {
  for (threads = 1; threads <= 5; ++threads) {
    opcel::Pool* pool = opcel::Pool::create(threads, threads % 2 == 0);
    pthread_t callers[kCallers];
    long wrong = pool->threads() != threads;
    for (pthread_t& caller : callers) pthread_create(&caller, nullptr, call, pool);
    for (pthread_t& caller : callers) {
      void* result;
      pthread_join(caller, &result);
      wrong += reinterpret_cast<long>(result);
    }
    pool->destroy();
    printf("threads %d wrong %ld\n", threads, wrong);
  }
  return 0;
}

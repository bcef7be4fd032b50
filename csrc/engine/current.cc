#include "engine/current.h"

#include <unistd.h>

#include <mutex>
#include <utility>

namespace ringdp {

namespace {

struct Current {
  std::mutex mutex;
  std::shared_ptr<Engine> engine;
  pid_t pid = 0;
};

// Never destroyed: programs may still run while the process ends.
Current& current() {
  static Current& only = *new Current;
  return only;
}

}  // namespace

void set_current(std::shared_ptr<Engine> engine) {
  Current& here = current();
  {
    std::lock_guard lock(here.mutex);
    std::swap(here.engine, engine);
    here.pid = getpid();
  }
  // The one from before goes here, outside the lock.
}

std::shared_ptr<Engine> current_engine() {
  Current& here = current();
  std::lock_guard lock(here.mutex);
  if (!here.engine || here.pid != getpid())
    fail(ErrorKind::closed, "ringdp is not initialised: call ringdp.init() first (or it was shut down)");
  return here.engine;
}

}  // namespace ringdp

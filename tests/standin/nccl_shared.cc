#include "nccl_shared.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <vector>

namespace standin {

namespace {

// Those that not all ranks came to open go at the end of the process.
struct Made {
  std::mutex mutex;
  std::vector<std::string> names;
  ~Made() {
    for (const std::string& name : names) shm_unlink(name.c_str());
  }
};

}  // namespace

std::string make_file() {
  static Made made;
  std::lock_guard lock(made.mutex);
  const std::string name = "/standin-nccl-" + std::to_string(getpid()) + "-" + std::to_string(made.names.size());
  made.names.push_back(name);
  const int file = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, sizeof(SharedFile)) != 0) return "";
  close(file);
  return name;
}

SharedFile* open_file(const std::string& name) {
  const int file = shm_open(name.c_str(), O_RDWR, 0600);
  if (file < 0) return nullptr;
  void* mapped = mmap(nullptr, sizeof(SharedFile), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return mapped == MAP_FAILED ? nullptr : static_cast<SharedFile*>(mapped);
}

void remove_file(const std::string& name) { shm_unlink(name.c_str()); }
void close_file(SharedFile* file) { munmap(file, sizeof *file); }

}  // namespace standin

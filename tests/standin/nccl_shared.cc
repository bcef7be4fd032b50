#include "nccl_shared.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>

namespace standin {

namespace {

std::mutex made_mutex;
std::map<std::string, int>& made() {  // by this process, and not yet opened by all
  static auto& files = *new std::map<std::string, int>;
  return files;
}

}  // namespace

std::string make_file() {
  const int file = memfd_create("standin-nccl", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, sizeof(SharedFile)) != 0) return "";
  static int serial = 0;  // the number of a file comes again when it is closed
  std::lock_guard lock(made_mutex);
  const std::string place = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file);
  const std::string name = place + "#" + std::to_string(++serial);
  made()[name] = file;
  return name;
}

SharedFile* open_file(const std::string& name) {
  const int file = open(name.substr(0, name.find('#')).c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  void* mapped = mmap(nullptr, sizeof(SharedFile), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return mapped == MAP_FAILED ? nullptr : static_cast<SharedFile*>(mapped);
}

void all_have_opened(const std::string& name) {
  std::lock_guard lock(made_mutex);
  const auto found = made().find(name);
  if (found == made().end()) return;
  close(found->second);
  made().erase(found);
}

void close_file(SharedFile* file) { munmap(file, sizeof *file); }

}  // namespace standin

#include "device/libraries.h"

#include <dlfcn.h>

#include <cstdlib>
#include <utility>

namespace ringdp {

namespace {

constexpr const char* kCuda = "libcuda.so.1";
constexpr const char* kNccl = "libnccl.so.2";

std::vector<std::string>& nccl_files() {
  static std::vector<std::string> files;
  return files;
}

const char* named_by(const char* variable) {
  const char* name = std::getenv(variable);
  return name != nullptr && *name != '\0' ? name : nullptr;
}

void* open(const std::string& file, int flags, std::string& why_not) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
  if (library == nullptr && why_not.empty() && flags == 0) why_not = dlerror();
  return library;
}

template <class Function>
bool look_up(void* library, const char* symbol, Function& function, std::string& why_not) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (function == nullptr) why_not = std::string("it is too old, or none: it has no ") + symbol;
  return function != nullptr;
}

std::string path_of(const void* function) {
  Dl_info info{};
  return dladdr(function, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::string text_of(const cuda::Driver& driver, cuda::Result result) {
  const char* text = nullptr;
  driver.text_of_error(result, &text);
  return text != nullptr ? text : "CUDA error " + std::to_string(result);
}

bool look_up_all(void* library, cuda::Driver& driver, std::string& why_not) {
#define RINGDP_LOOK_UP(name, symbol, parameters) \
  if (!look_up(library, #symbol, driver.name, why_not)) return false;
  RINGDP_CUDA_FUNCTIONS(RINGDP_LOOK_UP)
  return true;
}

bool look_up_all(void* library, nccl::Functions& functions, std::string& why_not) {
#define RINGDP_LOOK_UP_NCCL(name, symbol, parameters) \
  if (!look_up(library, #symbol, functions.name, why_not)) return false;
  RINGDP_NCCL_FUNCTIONS(RINGDP_LOOK_UP_NCCL)
  RINGDP_NCCL_TEXTS(RINGDP_LOOK_UP_NCCL)
  return true;
}

Found<cuda::Driver> find_driver() {
  static cuda::Driver driver;
  Found<cuda::Driver> found;
  const char* named = named_by("RINGDP_CUDA_LIBRARY");
  void* library = open(named ? named : kCuda, 0, found.missing);
  if (library == nullptr || !look_up_all(library, driver, found.missing)) return found;
  found.path = path_of(reinterpret_cast<const void*>(driver.init));
  int devices = 0;
  cuda::Result result = driver.init(0);
  if (result == cuda::kSuccess) result = driver.device_count(&devices);
  if (result != cuda::kSuccess)
    found.missing = text_of(driver, result);
  else if (devices == 0)
    found.missing = "no device is visible";
  else
    found.functions = &driver;
  return found;
}

void* open_nccl(std::string& why_not) {
  if (const char* named = named_by("RINGDP_NCCL_LIBRARY")) return open(named, 0, why_not);
  if (void* loaded = open(kNccl, RTLD_NOLOAD, why_not)) return loaded;
  for (const std::string& file : nccl_files())
    if (void* library = open(file, 0, why_not)) return library;
  std::string of_system;
  void* library = open(kNccl, 0, of_system);
  if (why_not.empty()) why_not = of_system;
  return library;
}

Found<nccl::Functions> find_nccl() {
  static nccl::Functions functions;
  Found<nccl::Functions> found;
  void* library = open_nccl(found.missing);
  if (library == nullptr || !look_up_all(library, functions, found.missing)) return found;
  found.path = path_of(reinterpret_cast<const void*>(functions.get_version));
  found.missing.clear();
  found.functions = &functions;
  return found;
}

}  // namespace

const Found<cuda::Driver>& cuda_driver() {
  static const Found<cuda::Driver> found = find_driver();
  return found;
}

const Found<nccl::Functions>& nccl_library() {
  static const Found<nccl::Functions> found = find_nccl();
  return found;
}

void look_for_nccl_in(std::vector<std::string> files) { nccl_files() = std::move(files); }

}  // namespace ringdp

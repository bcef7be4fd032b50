#include "base/options.h"

#include <cerrno>
#include <cstdlib>
#include <initializer_list>
#include <utility>

#include "base/error.h"

namespace ringdp {

const std::vector<OptionRow>& option_table() {
  static const std::vector<OptionRow> table = {
      {"RINGDP_TIMEOUT", "600",
       "seconds that an operation may wait for other ranks before it fails; 60 where one of them is dead, stopped or "
       "unreachable, unless this is set"},
      {"RINGDP_START_TIMEOUT", "600", "seconds that `init()` may wait for ranks that have not come to it"},
      {"RINGDP_REPORT_AFTER", "60",
       "seconds of waiting after which it is said which rank is waited for, and what it does"},
      {"RINGDP_SEGMENT_BYTES", "57344", "bytes sent at a time inside a chunk; the same on all ranks (*speed*)"},
      {"RINGDP_SHARED_SEGMENT_BYTES", "131072",
       "bytes of a chunk summed at a time in shared memory; the same on all ranks (*speed*)"},
      {"RINGDP_LETTER_BYTES", "16384",
       "all-reduces up to so many bytes (at most 32768) go along with their name; the same on all ranks"},
      {"RINGDP_SHARED_MEMORY", "auto",
       "how ranks of one host share memory: memfd, file (under /dev/shm), auto (the first that works), off"},
      {"RINGDP_CHECKSUM", "0",
       "1: what ranks send each other carries checksums (CRC32C); the same on all ranks (*speed*)"},
      {"RINGDP_GPU_TRANSPORT", "auto",
       "how GPU tensors are exchanged: nccl, mpi (from GPU to GPU by an MPI that can), host (by way of host memory), "
       "two_level (NCCL inside hosts, messages between), auto (the first of nccl, mpi, host that all ranks have)"},
      {"RINGDP_MPI_TAKES_GPU_MEMORY", "auto",
       "whether the MPI takes memory of GPUs: yes, no, auto (what it says itself); a wrong yes may end in a crash"},
      {"RINGDP_CUDA_LIBRARY", "libcuda.so.1", "the CUDA driver's library"},
      {"RINGDP_NCCL_LIBRARY", "libnccl.so.2", "NCCL's library, instead of the one that is loaded or installed"},
      {"RINGDP_DEPTH", "16", "segments that a rank receives ahead (*speed*)"},
      {"RINGDP_IDLE_LOOKS", "20", "looks per second of an idle engine at messages from other ranks (*speed*)"},
      {"RINGDP_SPIN_US", "20", "microseconds that a busy engine spins before it yields the core (*speed*)"},
      {"RINGDP_ALGORITHM", "auto", "the all-reduce that every operation takes, instead of the cheapest one"},
      {"RINGDP_PROFILE", "ethernet-10", "the links' speeds that the choice is made by: a name or a file"},
      {"RINGDP_INJECT", "none", "faults on purpose, for drills: see promises.md"},
      {"RINGDP_TIMELINE", "none", "file of rank 0's timeline, from `init()` on; the same as `start_timeline()`"},
      {"RINGDP_PREEMPT_SIGNALS", "TERM,USR1", "signals that ask all ranks to stop after this step, or none"},
      {"RINGDP_BUCKET_BYTES", "26214400",
       "bytes of a bucket of `DistributedOptimizer`, unless its `bucket_bytes` says; the same on all ranks"},
  };
  return table;
}

namespace {

double number(const char* variable, double low, double high, double fallback) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  errno = 0;
  const double value = std::strtod(text, &end);
  if (*end != '\0' || errno != 0 || !(value >= low && value <= high))
    fail(ErrorKind::usage, variable, "=", text, " is not a number from ", low, " to ", high);
  return value;
}

void text(const char* variable, std::string& value) {
  const char* given = std::getenv(variable);
  if (given != nullptr && *given != '\0') value = given;
}

// One of these names; the first, unless it is set.
template <class Value>
Value one_of(const char* variable, std::initializer_list<std::pair<const char*, Value>> names) {
  std::string given = names.begin()->first, known;
  text(variable, given);
  for (const auto& [name, value] : names) {
    if (given == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  fail(ErrorKind::usage, variable, "=", given, " is not one of ", known);
}

}  // namespace

Options options_from_environment() {
  Options o;
  const char* timeout = std::getenv("RINGDP_TIMEOUT");
  o.timeout = number("RINGDP_TIMEOUT", 0.01, 1e7, o.timeout);
  if (timeout != nullptr && *timeout != '\0') o.timeout_if_gone = o.timeout;  // it is for every kind of wait
  o.report_after = number("RINGDP_REPORT_AFTER", 0.01, 1e7, o.report_after);
  o.segment_bytes = static_cast<uint64_t>(number("RINGDP_SEGMENT_BYTES", 8, 1 << 26, double(o.segment_bytes)));
  o.shared_segment_bytes =
      static_cast<uint64_t>(number("RINGDP_SHARED_SEGMENT_BYTES", 8, 1 << 26, double(o.shared_segment_bytes)));
  o.letter_bytes = static_cast<uint64_t>(number("RINGDP_LETTER_BYTES", 0, 32 << 10, double(o.letter_bytes)));
  o.depth = static_cast<int64_t>(number("RINGDP_DEPTH", 1, 1024, double(o.depth)));
  o.gpu_transport = one_of<GpuTransport>("RINGDP_GPU_TRANSPORT", {{"auto", GpuTransport::automatic},
                                                                  {"nccl", GpuTransport::nccl},
                                                                  {"mpi", GpuTransport::mpi},
                                                                  {"host", GpuTransport::host},
                                                                  {"two_level", GpuTransport::two_level}});
  o.mpi_takes_gpu_memory = one_of<MpiTakesGpuMemory>(
      "RINGDP_MPI_TAKES_GPU_MEMORY",
      {{"auto", MpiTakesGpuMemory::automatic}, {"yes", MpiTakesGpuMemory::yes}, {"no", MpiTakesGpuMemory::no}});
  o.checksum = one_of<bool>("RINGDP_CHECKSUM", {{"0", false}, {"1", true}});
  o.idle_looks = number("RINGDP_IDLE_LOOKS", 0.1, 1e6, o.idle_looks);
  o.spin_us = number("RINGDP_SPIN_US", 0, 1e6, o.spin_us);
  text("RINGDP_ALGORITHM", o.algorithm);
  text("RINGDP_PROFILE", o.profile);
  text("RINGDP_INJECT", o.inject);
  return o;
}

}  // namespace ringdp

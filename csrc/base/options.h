// Every option of the core in one table: its environment variable, its default, what it means.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringdp {

// How GPU tensors are exchanged.
enum class GpuTransport : int32_t { automatic, host, nccl, mpi, two_level };

// Whether this MPI takes memory of GPUs: as it says itself, or as who knows better says.
enum class MpiTakesGpuMemory : int32_t { automatic, no, yes };

struct Options {
  double timeout = 600;               // seconds
  double timeout_if_gone = 60;        // where a rank that is waited for is dead, stopped or unreachable
  double report_after = 60;           // seconds
  uint64_t segment_bytes = 56 << 10;  // with its envelope below the 64 KiB that Open MPI sends over TCP at once
  uint64_t shared_segment_bytes = 128 << 10;
  uint64_t letter_bytes = 16 << 10;
  int64_t depth = 16;
  GpuTransport gpu_transport = GpuTransport::automatic;
  MpiTakesGpuMemory mpi_takes_gpu_memory = MpiTakesGpuMemory::automatic;
  bool checksum = false;   // in messages
  double idle_looks = 20;  // per second
  double spin_us = 20;
  std::string algorithm = "auto";       // of all-reduces: "auto" or a name of collectives/algorithm.cc
  std::string profile = "ethernet-10";  // a name of collectives/profile.cc or a path
  std::string inject;                   // faults on purpose: guard/inject.h
};

struct OptionRow {
  const char* variable;
  const char* fallback;
  const char* help;
};

// The table, for `ringdp info` and the docs.
const std::vector<OptionRow>& option_table();

// Reads the environment. A value that cannot be understood is an Error naming the variable, the value and what is
// valid.
Options options_from_environment();

}  // namespace ringdp

#include "collectives/profile.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "agree/digest.h"
#include "base/error.h"

namespace ringdp {

namespace {

constexpr double kMicro = 1e-6, kGiga = 1e9;
constexpr size_t kMostText = 64 << 10;  // bytes of a file

// One host, by measurement on two cores of a server of 2021: an all-reduce by MPI of 4 MiB moves 10 GB/s, one beyond the
// caches 2.2, so 4 in between; ranks that read and write each other's memory move 40 GB/s together; adding float32
// beyond the caches 4 GB/s, within 10. A message costs the engine 2 µs to post and find, a signal in memory half of
// one; an operation 30 µs for its round, its header and two threads that wake.
constexpr double kOverhead = 30 * kMicro, kReduce = 5 * kGiga;
constexpr Link kShared{0.5 * kMicro, 40 * kGiga}, kHost{2 * kMicro, 4 * kGiga};

Profile with_net(const char* name, double latency_us, double gbytes) {
  return {name, kOverhead, kShared, kHost, {latency_us * kMicro, gbytes * kGiga}, kReduce};
}

struct Field {
  const char* key;
  double scale;
  double& (*of)(Profile&);
};

const Field kFields[] = {
    {"overhead_us", kMicro, [](Profile& p) -> double& { return p.overhead; }},
    {"shared_latency_us", kMicro, [](Profile& p) -> double& { return p.shared.latency; }},
    {"shared_gbytes", kGiga, [](Profile& p) -> double& { return p.shared.bandwidth; }},
    {"host_latency_us", kMicro, [](Profile& p) -> double& { return p.host.latency; }},
    {"host_gbytes", kGiga, [](Profile& p) -> double& { return p.host.bandwidth; }},
    {"net_latency_us", kMicro, [](Profile& p) -> double& { return p.net.latency; }},
    {"net_gbytes", kGiga, [](Profile& p) -> double& { return p.net.bandwidth; }},
    {"reduce_gbytes", kGiga, [](Profile& p) -> double& { return p.reduce; }},
};

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r"), end = text.find_last_not_of(" \t\r");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

}  // namespace

// The bandwidths are what TCP leaves of a full-duplex link (0.95); a single stream does not fill 100 Gbit/s, it needs a
// core for about 40. Latencies are those of a small message between two processes over the kernel's TCP with an ordinary
// switch between; InfiniBand is driven from user space.
const std::vector<Profile>& built_in_profiles() {
  static const std::vector<Profile> table = {
      with_net("ethernet-1", 50, 0.119), with_net("ethernet-10", 30, 1.19), with_net("ethernet-25", 25, 2.97),
      with_net("ethernet-100", 20, 5.0), with_net("infiniband-200", 2, 24),
  };
  return table;
}

Profile profile_of(const std::string& name_or_path) {
  std::string names;
  for (const Profile& profile : built_in_profiles()) {
    if (profile.name == name_or_path) return profile;
    names += (names.empty() ? "" : ", ") + profile.name;
  }
  std::ifstream file(name_or_path);
  std::string text(kMostText + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.empty())
    fail(ErrorKind::usage, "RINGDP_PROFILE=", name_or_path, " is neither a file that can be read nor one of ", names);
  if (text.size() > kMostText) fail(ErrorKind::usage, "RINGDP_PROFILE=", name_or_path, " is too long for a profile");
  return parse_profile(text, name_or_path);
}

Profile parse_profile(const std::string& text, const std::string& file) {
  Profile profile;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const auto refuse = [&](const auto&... why) { fail(ErrorKind::usage, file, ", line ", number, ": ", why...); };
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const size_t equals = line.find('=');
    if (equals == std::string::npos) refuse("'", line, "' is not 'key = value'");
    const std::string key = trimmed(line.substr(0, equals)), value = trimmed(line.substr(equals + 1));
    if (key == "name") {
      profile.name = value;
      continue;
    }
    const Field* field = nullptr;
    for (const Field& f : kFields)
      if (key == f.key) field = &f;
    if (field == nullptr) refuse("there is no key '", key, "'");
    char* end = nullptr;
    const double given = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !(given > 0 && given < 1e9))
      refuse(key, " = '", value, "' is no number above 0");
    field->of(profile) = given * field->scale;
  }
  if (profile.name.empty()) fail(ErrorKind::usage, file, ": the key 'name' is missing");
  for (const Field& f : kFields)
    if (f.of(profile) == 0) fail(ErrorKind::usage, file, ": the key '", f.key, "' is missing");
  return profile;
}

std::string text_of(const Profile& profile) {
  Profile copy = profile;
  std::string text = "name = " + profile.name + "\n";
  for (const Field& f : kFields) {
    char value[40];
    std::snprintf(value, sizeof value, "%.6g", f.of(copy) / f.scale);
    text += std::string(f.key) + " = " + value + "\n";
  }
  return text;
}

// Of the text, so that a profile and the file that was written from it have the same.
uint64_t digest_of(const Profile& profile) { return Digest().add(text_of(profile)).value(); }

}  // namespace ringdp

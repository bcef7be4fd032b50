// What the cost functions know of the machine: latency and bandwidth of each class of link, and how fast ranks add.
//
// A profile is the same on all ranks (its digest is compared at init) and never changes in a run, because it decides
// which algorithm an operation takes and so in which order its elements are added.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ringdp {

struct Link {
  double latency = 0;    // seconds from the start of a small message to its arrival, software included
  double bandwidth = 0;  // bytes a second, each way
};

struct Profile {
  std::string name;
  double overhead = 0;  // seconds of an operation besides its schedule: agreement, header, waking the threads
  Link shared;          // memory of a host: one signal between two ranks; all that its ranks together read and write
  Link host;            // messages between two ranks of one host
  Link net;             // messages between two hosts
  double reduce = 0;    // bytes of float32 that one rank adds to others a second
};

const std::vector<Profile>& built_in_profiles();

// By the name of a built-in profile, or from the file of that path. Throws (usage) naming the file, line and key.
Profile profile_of(const std::string& name_or_path);

// The profile as a file, `key = value` a line: profile_of(path) gives the same profile again.
std::string text_of(const Profile& profile);
Profile parse_profile(const std::string& text, const std::string& file);

uint64_t digest_of(const Profile& profile);

}  // namespace ringdp

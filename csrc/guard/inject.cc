#include "guard/inject.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <limits>
#include <sstream>
#include <thread>
#include <utility>

#include "base/deadline.h"
#include "base/error.h"
#include "kernels/kernels.h"

namespace ringdp {

namespace {

constexpr const char* kHelp =
    " (as in RINGDP_INJECT=\"rank=1,step=7,stage=REDUCE,do=kill\"; do: kill, stop, segv, raise, sleep:SECONDS, "
    "spin:SECONDS, "
    "exit, flip, nan, slow:MILLISECONDSms)";

[[noreturn]] void refuse(const std::string& text, const std::string& why) {
  fail(ErrorKind::usage, "RINGDP_INJECT=", text, ": ", why, kHelp);
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

int64_t whole_number(const std::string& all, const std::string& text) {
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 0) refuse(all, "'" + text + "' is not a whole number");
  return value;
}

// One element of what is about to be sent.
void spoil(const Submission& s, bool with_nan) {
  const uint64_t bytes = s.count() * size_of(s.dtype);
  if (s.on_gpu || s.input == nullptr || bytes == 0) return;
  auto* at = static_cast<std::byte*>(const_cast<void*>(s.input)) + bytes / 2 / size_of(s.dtype) * size_of(s.dtype);
  if (!with_nan) {
    *at ^= std::byte{1};
  } else if (is_float(s.dtype)) {
    for (size_t i = 0; i < size_of(s.dtype); ++i) at[i] = std::byte{0xff};  // of each format a NaN
    at[size_of(s.dtype) - 1] = std::byte{0x7f};
  }
}

}  // namespace

Inject::Inject(const std::string& text, int rank) {
  for (const std::string& one : split(text, ';')) {
    Fault fault = parse(one);
    if (fault.rank < 0 || fault.rank == rank) faults_.push_back(std::move(fault));
  }
}

Inject::Fault Inject::parse(const std::string& text) {
  static const std::vector<std::pair<std::string, Do>> kinds = {
      {"kill", Do::kill}, {"stop", Do::stop}, {"segv", Do::segv}, {"raise", Do::raise}, {"sleep", Do::sleep},
      {"spin", Do::spin}, {"exit", Do::exit}, {"flip", Do::flip}, {"nan", Do::nan},     {"slow", Do::slow},
  };
  Fault fault;
  bool says_what = false;
  for (const std::string& part : split(text, ',')) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos) refuse(text, "'" + part + "' has no =");
    const std::string key = part.substr(0, equals), value = part.substr(equals + 1);
    if (key == "rank") {
      fault.rank = static_cast<int>(whole_number(text, value));
    } else if (key == "step") {
      fault.step = whole_number(text, value);
    } else if (key == "op") {
      fault.op = whole_number(text, value);
    } else if (key == "name") {
      fault.name = value;
    } else if (key == "stage") {
      bool known = false;
      for (const Stage stage : {Stage::submit, Stage::agree, Stage::reduce, Stage::done})
        if (value == name_of(stage)) fault.stage = stage, known = true;
      if (!known) refuse(text, "there is no stage '" + value + "': SUBMIT, AGREE, REDUCE or DONE");
    } else if (key == "do") {
      const size_t colon = value.find(':');
      const std::string what = value.substr(0, colon);
      for (const auto& [name, kind] : kinds)
        if (what == name) fault.what = kind, says_what = true;
      if (!says_what) refuse(text, "do=" + what + " is not known");
      if (colon != std::string::npos) {
        char* end = nullptr;
        fault.seconds = std::strtod(value.c_str() + colon + 1, &end);
        if (std::string(end) == "ms")
          fault.seconds /= 1000;
        else if (*end != '\0' && std::string(end) != "s")
          refuse(text, "'" + value + "' has no time that can be read");
      } else if (fault.what == Do::sleep || fault.what == Do::slow) {
        refuse(text, "do=" + what + " needs a time, as in do=" + what + ":5");
      } else {
        fault.seconds = std::numeric_limits<double>::infinity();
      }
    } else {
      refuse(text, "'" + key + "' is not known: rank, step, op, name, stage, do");
    }
  }
  if (!says_what) refuse(text, "it does not say what to do");
  return fault;
}

bool Inject::strikes(const Fault& fault, Stage stage, const Submission& s, uint64_t op, int64_t step) {
  if (fault.stage != stage || (fault.step >= 0 && fault.step != step)) return false;
  if (fault.op >= 0 && static_cast<uint64_t>(fault.op) != op) return false;
  if (!fault.name.empty() && fault.name != (s.lane >= 0 ? s.bucket_name() : s.name)) return false;
  return !fault.done->exchange(true) || fault.what == Do::slow;
}

void Inject::before_look(const Submission& s, uint64_t op, int64_t step) {
  for (const Fault& fault : faults_)
    if (fault.what == Do::nan && strikes(fault, Stage::submit, s, op, step)) carry_out(fault, s);
}

bool Inject::at(Stage stage, const Submission& s, uint64_t op, int64_t step, bool by_messages) {
  bool flips = false;
  for (const Fault& fault : faults_) {
    if (!strikes(fault, stage, s, op, step)) continue;
    if (fault.what == Do::flip && by_messages)
      flips = true;
    else
      carry_out(fault, s);
  }
  return flips;
}

void Inject::carry_out(const Fault& fault, const Submission& s) {
  switch (fault.what) {
    case Do::kill:
      kill(getpid(), SIGKILL);
      pause();
      break;
    case Do::stop:
      kill(getpid(), SIGSTOP);
      break;
    case Do::segv:
      // As a wrong pointer does it, and not as a signal from outside.
      *static_cast<volatile int*>(nullptr) = 1;  // NOLINT
      break;
    case Do::raise:
      fail(ErrorKind::injected, "RINGDP_INJECT: an exception on purpose, at ", name_of(fault.stage), " of ",
           s.lane >= 0 ? s.bucket_name() : "'" + s.name + "'");
    case Do::sleep:
    case Do::slow:
      std::this_thread::sleep_for(Seconds(fault.seconds));
      break;
    case Do::spin: {
      const auto until = fault.seconds > 1e8 ? Clock::time_point::max() : Deadline::in(Seconds(fault.seconds)).end();
      while (Clock::now() < until) {
      }
      break;
    }
    case Do::exit:
      _exit(3);
    case Do::flip:
      spoil(s, false);
      break;
    case Do::nan:
      spoil(s, true);
      break;
  }
}

}  // namespace ringdp

#include "guard/signals.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace ringdp {

namespace signals {

namespace {

constexpr int kCrashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

// What handlers touch: prepared before they are installed.
struct Prepared {
  std::atomic<Flight*> flight{nullptr};
  pid_t pid = 0;
  char folder[3072] = {}, recorder[3200] = {}, was_at[512] = {};
  struct sigaction before[65] = {};
  bool installed[65] = {};
};
Prepared prepared;

void as_before(int number) {
  sigaction(number, &prepared.before[number], nullptr);
  raise(number);  // delivered when the handler returns
}

void end_by(int number) {
  signal(number, SIG_DFL);
  raise(number);
}

// Nobody comes back from abort(), but who was there before may print stacks, and wait for ever for a lock that this thread
// holds, as malloc's: to the others this process would be alive.
void die_soon() {
  constexpr unsigned kOthersTake = 5;  // seconds, at the most
  sigset_t alone;
  sigemptyset(&alone);
  sigaddset(&alone, SIGALRM);
  signal(SIGALRM, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &alone, nullptr);
  alarm(kOthersTake);
}

void crashed(int number, siginfo_t* info, void*) {
  static volatile sig_atomic_t times = 0;  // who was there before may hand it back to us
  const int error = errno;
  Flight* flight = prepared.flight;
  if (++times > 1) return end_by(number);
  if (flight != nullptr && getpid() == prepared.pid) {
    FlightHead& head = flight->head();
    head.signal_code = info->si_code;
    head.signal_address = reinterpret_cast<uint64_t>(info->si_addr);
    head.failed_at.store(nanoseconds(Clock::now()));
    head.signal.store(number);
    save();
  }
  if (number == SIGABRT) die_soon();
  errno = error;
  as_before(number);
}

void asked_to_end(int number, siginfo_t* info, void* context) {
  const int error = errno;
  Flight* flight = prepared.flight;
  const struct sigaction& before = prepared.before[number];
  const bool is_default = !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_DFL;
  const bool is_ours = flight != nullptr && getpid() == prepared.pid;
  const bool has_culprit = is_ours && blames_somebody(flight->head());
  if (has_culprit || is_default) {
    if (is_ours) flight->head().signal.store(number);
    if (has_culprit)
      save();
    else if (is_ours)
      flight->unlink();
    end_by(number);
  } else if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  }
  errno = error;
}

void install_one(int number, void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action{};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  prepared.installed[number] = sigaction(number, &action, &prepared.before[number]) == 0;
}

}  // namespace

void install(Flight& flight, const std::string& folder) {
  if (prepared.flight != nullptr) return;
  const int rank = flight.head().rank;
  std::snprintf(prepared.folder, sizeof prepared.folder, "%s", folder.c_str());
  std::snprintf(prepared.recorder, sizeof prepared.recorder, "%s/rank-%d.flight", folder.c_str(), rank);
  std::snprintf(prepared.was_at, sizeof prepared.was_at, "%s", flight.path().c_str());
  prepared.pid = getpid();
  prepared.flight = &flight;
  for (const int number : kCrashes) install_one(number, crashed);
  install_one(SIGTERM, asked_to_end);
}

// Only where nobody has come after us: whoever has, hands on to us.
void remove(const Flight& flight) {
  if (prepared.flight != &flight) return;
  prepared.flight = nullptr;
  const auto take_back = [](int number, void (*handler)(int, siginfo_t*, void*)) {
    struct sigaction now{};
    if (!prepared.installed[number] || sigaction(number, nullptr, &now) != 0) return;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handler)
      sigaction(number, &prepared.before[number], nullptr);
    prepared.installed[number] = false;
  };
  for (const int number : kCrashes) take_back(number, crashed);
  take_back(SIGTERM, asked_to_end);
}

void save() {
  Flight* flight = prepared.flight;
  if (flight == nullptr || prepared.was_at[0] == '\0') return;
  mkdir(prepared.folder, 0700);
  if (save_flight(&flight->head(), prepared.recorder)) unlink(prepared.was_at);
}

}  // namespace signals
}  // namespace ringdp

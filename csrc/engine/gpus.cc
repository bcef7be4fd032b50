// How the ranks of a process set find out by which way GPU tensors go (world/gpus.h): a step at a time, without a wait.
#include "world/gpus.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "agree/digest.h"
#include "base/check.h"
#include "device/kernels.h"
#include "device/libraries.h"
#include "engine/engine.h"
#include "engine/launch.h"

namespace ringdp {

namespace {

using Way = Gpus::Way;

constexpr double kMostToConnect = 120;  // seconds
const std::string kNotConnected = "NCCL did not connect the ranks in time";

int nccl_version() {
  const Found<nccl::Functions>& found = nccl_library();
  int version = 0;
  if (found.functions != nullptr) found.functions->get_version(&version);
  return version;
}

bool takes_kernels(Gpu& gpu) {
  if (!kernels_are_built()) return false;
  try {
    Kernels::of(gpu);
  } catch (const Error&) {  // a GPU older than all that they were built for
    return false;
  }
  return true;
}

const char* name_of(GpuTransport transport) {
  constexpr const char* names[] = {"auto", "host", "nccl", "mpi", "two_level"};
  return names[static_cast<int>(transport)];
}

// The first rank that wants something else; "" if there is none. In each host two levels want NCCL.
std::string other_wish(const std::vector<GpuCard>& cards, const ProcessSet& set, GpuTransport wanted) {
  for (size_t i = 0; i < cards.size(); ++i) {
    const GpuTransport wish = cards[i].wants;
    const bool is_level = wish == GpuTransport::two_level && wanted == GpuTransport::nccl;
    if (wish == GpuTransport::automatic || wish == wanted || (is_level && set.chooser.placement.hosts == 1)) continue;
    const std::string has = "rank " + std::to_string(set.ranks[i]) + " has RINGDP_GPU_TRANSPORT=" + name_of(wish);
    if (wish != GpuTransport::two_level) return has;
    return has + ", which all ranks must have, on hosts with equally many ranks each, two or more, that share memory";
  }
  return "";
}

// What stands against MPI, on whichever rank; "" if nothing does.
std::string objection_to_mpi(const std::vector<GpuCard>& cards, const ProcessSet& set) {
  if (std::string wish = other_wish(cards, set, GpuTransport::mpi); !wish.empty()) return wish;
  for (size_t i = 0; i < cards.size(); ++i) {
    const std::string who = "the MPI of rank " + std::to_string(set.ranks[i]);
    if (cards[i].mpi == TakesGpuMemory::no) return who + " says that it takes no memory of GPUs";
    if (cards[i].mpi == TakesGpuMemory::unknown)
      return who + " does not say whether it takes memory of GPUs (RINGDP_MPI_TAKES_GPU_MEMORY=yes says so)";
  }
  return "";
}

// What stands against NCCL. In two levels: nothing but what the ranks of some host find.
std::string objection_to_nccl(const std::vector<GpuCard>& cards, const ProcessSet& set) {
  if (set.in_host) return "";
  const auto of = [&](size_t i) { return "rank " + std::to_string(set.ranks[i]); };
  if (std::string wish = other_wish(cards, set, GpuTransport::nccl); !wish.empty()) return wish;
  for (size_t i = 0; i < cards.size(); ++i) {
    if (cards[i].nccl == 0) return of(i) + " has no NCCL (pip install 'ringdp[cuda12]' or 'ringdp[cuda13]')";
    if (cards[i].nccl != cards[0].nccl)
      return of(i) + " has NCCL " + std::to_string(cards[i].nccl) + ", " + of(0) + " " + std::to_string(cards[0].nccl);
    for (size_t other = 0; other < i; ++other)
      if (std::memcmp(&cards[i].uuid, &cards[other].uuid, sizeof cards[i].uuid) == 0)
        return of(other) + " and " + of(i) + " use the same GPU";
  }
  return "";
}

}  // namespace

// Whether the operation is taken here: it waits until the way is known, or goes by NCCL. Otherwise it goes by MPI, or
// through host memory, as everything does in which a rank that has joined takes part.
bool Engine::goes_by_gpu(Submission& s, ProcessSet& set, uint64_t ticket) {
  if (s.by_nccl && !s.first_may_differ()) {  // the self-check
    add_launch(std::move(s), set, ticket, {});
    return true;
  }
  if (!s.place || s.by_nccl || s.by_mpi || way_of(s, set, true) == By::host_memory) return false;
  if (!set.gpus) set.gpus = std::make_unique<Gpus>();
  Gpus& gpus = *set.gpus;
  const bool is_check = s.handle == gpus.asked;
  if (is_check && gpus.found == Way::two_levels) {
    begin_levels(std::move(s), set, ticket);
    return true;
  }
  if (gpus.way == Way::host || is_check) return false;
  if (gpus.way == Way::failed) {
    fail_agreed(set, s, ticket, gpus.asked->error());
    return true;
  }
  if (gpus.way == Way::unknown) look_for_way(set, s.place->gpu);
  if (!gpus.is_decided()) {
    gpus.waiting.push_back({std::move(s), ticket});
    return true;
  }
  if (s.in_graph && (gpus.way != Way::nccl || !gpus.kernels)) return false;  // and fails
  if (gpus.way == Way::two_levels) {
    if (s.kind != OpKind::allreduce || s.half != Half::both) return false;
    begin_levels(std::move(s), set, ticket);
    return true;
  }
  if (gpus.way == Way::mpi) {
    s.by_mpi = gpus.kernels || !Direct::reduces(s);
    return false;  // as an operation of messages
  }
  if (way_of(s, set, gpus.kernels) == By::host_memory) return false;
  begin_launch(std::move(s), set, ticket);
  return true;
}

// --- what the ranks tell each other ---------------------------------------------------------------------------------

// An operation like any other, by a name that no user has.
void Engine::ask(ProcessSet& set, Submission s, const char* what) {
  s.name = std::string(kReservedPrefix) + "gpus." + what;
  s.key = key_of(s.name);
  s.process_set = set.id;
  s.awaits_joined = true;
  s.handle = set.gpus->asked = std::make_shared<Handle>();
  take_named(std::move(s), set);
}

void Engine::tell_all(ProcessSet& set, const char* what, const void* bytes, size_t count) {
  Submission s;
  s.kind = OpKind::allgather;
  s.dtype = Dtype::uint8;
  s.shape = {count};
  s.input = bytes;
  ask(set, std::move(s), what);
}

void Engine::look_for_way(ProcessSet& set, Gpu& gpu) {
  if (!set.gpus) set.gpus = std::make_unique<Gpus>();
  set.gpus->gpu = &gpu;
  set.gpus->until = Deadline::in(Seconds(options_.timeout));
  tell_card(set);
}

void Engine::tell_card(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  gpus.way = Way::telling;
  gpus.card.uuid = gpus.gpu->uuid();
  gpus.card.wants = options_.gpu_transport;
  const auto may_be = [this](GpuTransport way) {
    return options_.gpu_transport == way || options_.gpu_transport == GpuTransport::automatic;
  };
  gpus.card.nccl = may_be(GpuTransport::nccl) || may_be(GpuTransport::two_level) ? nccl_version() : 0;
  gpus.card.mpi = may_be(GpuTransport::mpi) ? mpi_takes_gpu_memory(set) : TakesGpuMemory::no;
  gpus.card.kernels = takes_kernels(*gpus.gpu);
  if (gpus.card.nccl > 0 && set.rank() == 0 && !set.in_host) gpus.card.id = Communicator::new_id();
  tell_all(set, "card", &gpus.card, sizeof gpus.card);
}

TakesGpuMemory Engine::mpi_takes_gpu_memory(const ProcessSet& set) const {
  switch (options_.mpi_takes_gpu_memory) {
    case MpiTakesGpuMemory::yes:
      return TakesGpuMemory::yes;
    case MpiTakesGpuMemory::no:
      return TakesGpuMemory::no;
    default:
      return set.data->takes_gpu_memory();
  }
}

// What went wrong here, or nothing.
void Engine::tell_text(ProcessSet& set, Way next, const char* what) {
  set.gpus->way = next;
  tell_all(set, what, set.gpus->said.data(), set.gpus->said.size());
}

// --- a step -------------------------------------------------------------------------------------------------------------

bool Engine::find_way(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  if (gpus.asked && gpus.asked->failed()) return give_way_up(set);
  switch (gpus.way) {
    case Way::telling:
      return gpus.asked->done() && cards_are_here(set);
    case Way::making:
      return set.in_host ? hosts_have_found_ways(set) : make_communicator(set);
    case Way::made:
      return gpus.asked->done() && all_have_made_it(set);
    case Way::probing:
      return look_at_probe(set);
    case Way::probed:
      return gpus.asked->done() && all_have_probed(set);
    case Way::checking:
      return check_values(set);
    case Way::checked:
      return gpus.asked->done() && all_have_checked(set);
    default:
      return false;
  }
}

// Not all ranks have told: what waits fails as that did, and what comes later, too. To begin anew would not do: what this
// rank has told stays told, and the others may come to it yet.
bool Engine::give_way_up(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  gpus.way = Way::failed;
  if (gpus.nccl) gpus.nccl->abort();
  for (Gpus::Waiting& one : std::exchange(gpus.waiting, {}))
    fail_agreed(set, one.submission, one.ticket, gpus.asked->error());
  return true;
}

bool Engine::cards_are_here(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  const Result& result = gpus.asked->result();
  std::vector<GpuCard> cards(set.ranks.size());
  RINGDP_CHECK(result.output_bytes == cards.size() * sizeof cards[0]);
  std::memcpy(cards.data(), result.output.get(), result.output_bytes);
  for (const GpuCard& card : cards)
    RINGDP_CHECK(card.wants >= GpuTransport::automatic && card.wants <= GpuTransport::two_level);
  gpus.why_not_nccl = objection_to_nccl(cards, set);
  gpus.why_not_mpi = objection_to_mpi(cards, set);
  const auto insists_on = [&](GpuTransport way) {
    return std::any_of(cards.begin(), cards.end(), [way](const GpuCard& card) { return card.wants == way; });
  };
  for (const auto& [way, why_not] :
       {std::pair(GpuTransport::nccl, gpus.why_not_nccl), std::pair(GpuTransport::mpi, gpus.why_not_mpi)})
    if (insists_on(way) && !why_not.empty())
      fail(ErrorKind::gpu, "rank ", rank_, ": RINGDP_GPU_TRANSPORT=", name_of(way), ", but ", why_not);
  gpus.kernels = std::all_of(cards.begin(), cards.end(), [](const GpuCard& card) { return card.kernels != 0; });
  if (!gpus.why_not_nccl.empty()) {
    go_without_nccl(set);
    return true;
  }
  gpus.way = Way::making;
  if (set.in_host) return true;
  // Where it fails on one rank, the others wait in vain, and must be there in time to hear of it.
  gpus.until = Deadline::in(Seconds(std::min(options_.timeout / 2, kMostToConnect)));
  try {
    gpus.nccl = std::make_unique<Communicator>(*gpus.gpu, cards[0].id, set.size(), set.rank());
  } catch (const Error& error) {
    gpus.said = error.what();
    tell_text(set, Way::made, "made");
  }
  return true;
}

bool Engine::make_communicator(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  try {
    if (!gpus.nccl->settled() && !gpus.until.passed()) return false;
    if (gpus.until.passed()) gpus.said = kNotConnected;
  } catch (const Error& error) {
    gpus.said = error.what();
  }
  tell_text(set, Way::made, "made");
  return true;
}

// The first rank that has said something, and what: rather a cause than that others have waited because of it.
std::string Engine::complaint(ProcessSet& set) const {
  const Result& result = set.gpus->asked->result();
  const char* text = reinterpret_cast<const char*>(result.output.get());
  std::string found;
  bool is_cause = false;
  for (size_t i = 0; i < result.rows.size(); text += result.rows[i++]) {
    const std::string said(text, result.rows[i]);
    if (said.empty() || is_cause || (!found.empty() && said == kNotConnected)) continue;
    found = "rank " + std::to_string(set.ranks[i]) + ": " + said;
    is_cause = said != kNotConnected;
  }
  return found;
}

bool Engine::all_have_made_it(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  const std::string why_not = complaint(set);
  if (why_not.empty()) {
    begin_check(set, set.in_host ? Way::two_levels : Way::nccl);
    return true;
  }
  gpus.nccl.reset();
  if (gpus.card.wants == GpuTransport::nccl) fail(ErrorKind::gpu, "rank ", rank_, ": no NCCL: ", why_not);
  gpus.why_not_nccl = why_not;
  go_without_nccl(set);
  return true;
}

// An address on a GPU is a crash where MPI does not take it, which no probe notices in time: so only where every rank's MPI
// itself says that it can.
void Engine::go_without_nccl(ProcessSet& set) {
  if (set.gpus->why_not_mpi.empty()) return begin_probe(set);
  go_through_host(set);
}

void Engine::go_through_host(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  gpus.why_host = gpus.why_not_nccl;
  const bool mpi_might_have = gpus.card.wants == GpuTransport::automatic && gpus.why_not_mpi != gpus.why_not_nccl;
  if (mpi_might_have) gpus.why_host += ", and " + gpus.why_not_mpi;
  begin_check(set, Way::host);
}

// What has waited goes on, in order.
void Engine::decide(ProcessSet& set) {
  Gpus& gpus = *set.gpus;
  gpus.way = gpus.found;
  gpus.asked.reset();
  if (gpus.way == Way::host && !set.is_level() && set.rank() == 0 && gpus.card.wants != GpuTransport::host)
    std::fprintf(stderr, "ringdp: process set %d exchanges GPU tensors through host memory: %s\n", set.id,
                 gpus.why_host.c_str());
  for (Gpus::Waiting& one : std::exchange(gpus.waiting, {}))
    start(std::move(one.submission), set, one.ticket, Describe::no);
}

}  // namespace ringdp

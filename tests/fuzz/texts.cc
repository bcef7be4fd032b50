// What is parsed at once: headers, descriptions of operations, cards of heaps, files of profiles.
#include <fcntl.h>
#include <unistd.h>

#include "agree/header.h"
#include "collectives/profile.h"
#include "fuzz.h"
#include "shared/heap.h"
#include "submit/differences.h"
#include "submit/submission.h"

using namespace ringdp;
using namespace ringdp::fuzz;

namespace {

// --- headers -------------------------------------------------------------------------------------------------------

Header header() {
  Header h;
  h.digest = 0x1817161514131211;
  h.count = 1000;
  h.sequence = 7;
  h.dtype = static_cast<uint8_t>(Dtype::float32);
  h.op = static_cast<uint8_t>(ReduceOp::sum);
  return h;
}

std::vector<std::string> headers() {
  Header other = header();
  other.count = 1001, other.dtype = static_cast<uint8_t>(Dtype::bfloat16), other.flags = Header::kOnGpu;
  return {bytes_of(header()), bytes_of(other)};
}

FUZZ(headers_that_come, headers) {
  const Header theirs = Input(input).take<Header>();
  if (difference(header(), theirs, 3).empty() && !theirs.poisoned() && theirs.count != header().count)
    throw std::logic_error("a header with another count is taken for the same");
}

// --- descriptions --------------------------------------------------------------------------------------------------

std::vector<std::string> submissions() {
  std::vector<std::string> encoded;
  Submission s;
  s.name = "layer.0.weight";
  s.shape = {3, 5, 7};
  encoded.push_back(s.encoded());
  s.kind = OpKind::broadcast, s.root = 1, s.prescale = 0.5;
  encoded.push_back(s.encoded());
  s.kind = OpKind::allgather, s.root = -1, s.dtype = Dtype::int64, s.shape = {0};
  s.group = group_of({s, s});
  encoded.push_back(s.encoded());
  return encoded;
}

FUZZ(submissions_of_others, submissions) {
  const Submission s = Submission::decoded(input);
  const bool is_described = s.kind == OpKind::open_plan || !s.description().empty();
  if (s.count() > kMostBytes || !is_described || s.signature() == 0)
    throw std::logic_error("what no rank can mean was taken");
  if (s.encoded() != input) throw std::logic_error("it is not what was encoded");
}

std::vector<std::string> texts() {
  return {"allreduce of float32[3], op Sum\n\nallreduce of float32[4], op Sum\n\nbarrier", "a\n\n\n\nb", "\n\n"};
}

// Each text up to an empty line is a rank's.
FUZZ(differences_in_words, texts) {
  std::vector<std::string> of_rank;
  std::vector<int> ranks;
  size_t at = 0;
  for (int rank = 0; rank < 40; ++rank) {
    const size_t end = input.find("\n\n", at);
    of_rank.push_back(input.substr(at, end == std::string::npos ? end : end - at));
    ranks.push_back(rank);
    if (end == std::string::npos) break;
    at = end + 2;
  }
  if (differences(of_rank, ranks).find("rank") == std::string::npos) throw std::logic_error("nobody is named");
}

// --- cards of heaps ------------------------------------------------------------------------------------------------

Heap& memfd() {
  static Heap heap(HeapKind::memfd);
  return heap;
}
Heap& file() {
  static Heap heap(HeapKind::file);
  return heap;
}

std::vector<std::string> cards() { return {bytes_of(memfd().card()), bytes_of(file().card())}; }

// Descriptors of this process alone are opened: others may belong to devices.
FUZZ(cards_of_heaps, cards) {
  auto card = Input(input).take<HeapCard>();
  card.pid = getpid();
  if (card.kind == HeapKind::memfd && fcntl(card.fd, F_GETFD) >= 0 && card.fd != memfd().card().fd &&
      card.fd != file().card().fd)
    card.fd = 1 << 20;
  std::string reason;
  const auto peer = PeerHeap::map(card, reason);
  if (peer == nullptr && reason.empty()) throw std::logic_error("no reason is given");
  if (peer != nullptr && peer->holds(0, memfd().reserved() + 1)) throw std::logic_error("more than there is");
}

// --- profiles ------------------------------------------------------------------------------------------------------

std::vector<std::string> profiles() {
  std::vector<std::string> all;
  for (const Profile& profile : built_in_profiles()) all.push_back(text_of(profile));
  all.push_back("# a comment\n" + all[0]);
  return all;
}

FUZZ(profiles_in_files, profiles) {
  const Profile profile = parse_profile(input, "a file");
  if (digest_of(parse_profile(text_of(profile), "again")) != digest_of(profile))
    throw std::logic_error("the profile's own text is another profile");
}

}  // namespace

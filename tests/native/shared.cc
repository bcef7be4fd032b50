// Memory shared by the ranks of a host: heaps, and the letters that lie in them. Several ranks in this process, each with
// a heap of its own that the others map as another process would.
#include <dirent.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "agree/letters.h"
#include "check.h"
#include "shared/heap.h"
#include "shared/host.h"
#include "shared/mail.h"

using namespace ringdp;

namespace {

constexpr uint64_t kSecret = 0x5eed;

// Hosts of `size` ranks that have mapped each other, and a part of the mail in each.
struct Neighbours {
  explicit Neighbours(int size) : offsets(size) {
    for (int r = 0; r < size; ++r) {
      hosts.push_back(std::make_shared<Host>(r, std::make_shared<Heap>(HeapKind::memfd)));
      Heap& heap = hosts[r]->heap();
      const size_t bytes = Mail::part_bytes(size);
      auto* part = static_cast<std::byte*>(heap.allocate(bytes));
      Mail::prepare(part, size, kSecret + static_cast<uint64_t>(r));
      offsets[r] = heap.offset_of(part, bytes);
    }
    for (int r = 0; r < size; ++r)
      for (int other = 0; other < size; ++other)
        if (other != r) CHECK(hosts[r]->attach(other, hosts[other]->heap().card()).empty());
  }
  std::vector<std::byte*> parts(int rank) const {
    std::vector<std::byte*> parts;
    for (size_t r = 0; r < hosts.size(); ++r) parts.push_back(hosts[rank]->at(static_cast<int>(r), offsets[r]));
    return parts;
  }
  Letters letters(int rank) const {
    std::vector<int> members(hosts.size());
    std::iota(members.begin(), members.end(), 0);
    return Letters(hosts[rank], members, members, rank, parts(rank));
  }

  std::vector<std::shared_ptr<Host>> hosts;
  std::vector<uint64_t> offsets;
};

Meetings::Meeting* read(Letters& letters) {
  letters.poll();
  return letters.next_complete();
}

int files_of_ours() {
  int found = 0;
  DIR* const dir = opendir("/dev/shm");
  CHECK(dir != nullptr);
  const std::string prefix = "ringdp-" + std::to_string(getpid()) + "-";
  while (const dirent* entry = readdir(dir)) found += std::string(entry->d_name).rfind(prefix, 0) == 0;
  closedir(dir);
  return found;
}

}  // namespace

// More than an outbox holds, while nobody reads: what does not fit waits, and comes whole and in its order.
TEST(letters_that_find_the_outbox_full_come_later_in_their_order) {
  const Neighbours n(3);
  Mail writer(0, n.parts(0)), quick(1, n.parts(1)), slow(2, n.parts(2));
  constexpr int kLetters = 300;
  const auto bytes_of = [](int i) { return static_cast<uint32_t>(i * 997 % Mail::kMostPayload); };
  size_t posted = 0;
  for (int i = 0; i < kLetters; ++i) {
    Note letter;
    letter.ticket = static_cast<uint64_t>(i);
    letter.bytes = bytes_of(i);
    const std::vector<std::byte> payload(letter.bytes, static_cast<std::byte>(i));
    writer.post(letter, payload.data());
    posted += letter.bytes;
  }
  CHECK(posted > Mail::part_bytes(3) && !writer.all_posted());
  int read_by[2] = {};
  for (int turn = 0; turn < 10 * kLetters && (read_by[0] < kLetters || read_by[1] < kLetters); ++turn) {
    writer.poll([](int, const Note&, const void*) { CHECK(false, "nobody has written to the writer"); });
    int reader = 0;
    for (Mail* mail : {&quick, &slow}) {
      int& next = read_by[reader];
      if (reader++ == 0 || turn % 7 == 0)
        mail->poll([&](int member, const Note& letter, const void* payload) {
          CHECK(member == 0 && letter.ticket == static_cast<uint64_t>(next) && letter.bytes == bytes_of(next));
          for (uint32_t b = 0; b < letter.bytes; ++b)
            CHECK(static_cast<const std::byte*>(payload)[b] == static_cast<std::byte>(next));
          ++next;
        });
    }
  }
  CHECK(read_by[0] == kLetters && read_by[1] == kLetters && writer.all_posted());
}

// Rank 2 leaves, rank 0 leaves because of that; rank 1 opens rank 0's letter first.
TEST(who_hears_of_a_follower_first_names_the_one_that_left_first) {
  const Neighbours n(3);
  Letters zero = n.letters(0), one = n.letters(1), two = n.letters(2);
  two.leave();
  read(zero);
  CHECK(zero.first_left() == 2 && zero.has_left(2) && !zero.has_left(1));
  zero.leave();
  read(one);
  CHECK(one.has_left(0) && one.has_left(2) && !one.all_left());
  CHECK(one.first_left() == 2, one.first_left());
  one.leave();
  CHECK(one.all_left() && !zero.all_left());
}

// Its memory serves the next meeting, which nobody has come to but this rank.
TEST(a_meeting_that_is_closed_before_poll_told_of_it_is_not_told_of_any_more) {
  const Neighbours n(2);
  Letters zero = n.letters(0), one = n.letters(1);
  Note first, second;
  first.topic = Meetings::place, first.key = 1;
  second.topic = Meetings::named, second.key = 2;
  one.come(first, nullptr, 0);
  read(zero);
  Meetings::Meeting& meeting = zero.come(first, nullptr, 0);
  CHECK(meeting.complete);
  zero.close(meeting);
  CHECK(!zero.come(second, nullptr, 7).complete);
  CHECK(read(zero) == nullptr, "rank 1 has not come");
  one.come(second, nullptr, 0);
  const Meetings::Meeting* complete = read(zero);
  CHECK(complete != nullptr && complete->token == 7);
}

// Rank 1 has come to `first` and waits; rank 0 leaves without; so does rank 2, which has heard of it.
TEST(what_lacks_a_rank_that_has_left_ends_with_its_number) {
  const Neighbours n(3);
  Letters zero = n.letters(0), one = n.letters(1), two = n.letters(2);
  Note first;
  first.topic = Meetings::named, first.key = 1;
  one.come(first, nullptr, 5);
  zero.leave();
  CHECK(read(two) == nullptr && two.first_left() == 0);
  const Meetings::Meeting* ended = read(one);
  for (int turn = 0; turn < 3 && ended == nullptr; ++turn) read(zero), read(two), ended = read(one);
  CHECK(ended != nullptr && ended->token == 5 && ended->left == 0 && !ended->agreed);
}

TEST(a_heap_gives_each_block_memory_of_its_own_and_takes_it_back) {
  Heap heap(HeapKind::memfd);
  struct Block {
    unsigned char* at;
    size_t bytes;
    unsigned char value;
  };
  std::vector<Block> blocks;
  uint64_t random = 1;
  const auto next = [&](uint64_t below) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % below;
  };
  const auto whole = [](const Block& b) {
    for (size_t i = 0; i < b.bytes; i += 61) CHECK(b.at[i] == b.value);
    CHECK(b.at[b.bytes - 1] == b.value);
  };
  for (int turn = 0; turn < 400; ++turn) {
    if (blocks.size() > 12 || (!blocks.empty() && next(3) == 0)) {
      const size_t which = next(blocks.size());
      whole(blocks[which]);
      heap.free(blocks[which].at);
      blocks.erase(blocks.begin() + static_cast<long>(which));
      continue;
    }
    const size_t bytes = next(2) ? next(5000) + 1 : next(24 << 20) + 1;  // some go back to the system when freed
    auto* at = static_cast<unsigned char*>(heap.allocate(bytes));
    CHECK(at != nullptr && reinterpret_cast<uintptr_t>(at) % 64 == 0);
    blocks.push_back({at, bytes, static_cast<unsigned char>(turn)});
    std::memset(at, turn, bytes);
  }
  for (const Block& b : blocks) whole(b), heap.free(b.at);
  CHECK(heap.reserved() < (uint64_t{1} << 30), "freed memory is used again: ", heap.reserved());
}

TEST(a_heap_in_a_file_loses_its_name_when_all_have_mapped_it_and_when_it_ends) {
  {
    Heap heap(HeapKind::file);
    CHECK(files_of_ours() == 1);
    std::string reason;
    const auto peer = PeerHeap::map(heap.card(), reason);
    CHECK(peer != nullptr, reason);
    heap.unlink();
    CHECK(files_of_ours() == 0);
    auto* mine = static_cast<std::byte*>(heap.allocate(100));
    std::memset(mine, 42, 100);
    CHECK(peer->at(heap.offset_of(mine, 100))[99] == std::byte{42}, "mapped still");
    Heap given_up(HeapKind::file);
    CHECK(files_of_ours() == 1);
  }
  CHECK(files_of_ours() == 0);
}

TEST(memory_that_is_not_the_cards_is_refused) {
  Heap heap(HeapKind::memfd), other(HeapKind::memfd);
  const auto refusal = [](const HeapCard& card) {
    std::string reason;
    CHECK(PeerHeap::map(card, reason) == nullptr);
    return reason;
  };
  HeapCard card = heap.card();
  card.fd = other.card().fd;
  CHECK(refusal(card) == "its token cannot be read there");
  card = heap.card();
  card.version = 0;
  CHECK(refusal(card) == "another version of ringdp");
  card = heap.card();
  card.fd = 0xffff;
  CHECK(refusal(card).find("No such file") != std::string::npos);
}

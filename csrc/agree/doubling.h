// Meetings of ranks that send each other messages, in log2 N exchanges: recursive doubling, the data of small tensors
// merged on the way, in the same order of addition as collectives/recursive_doubling.cc.
//
// In exchange k a rank sends what it has heard so far to the rank whose number differs in bit k, and merges what that one
// has heard; with another number of ranks than a power of two the first ones go in pairs (collectives/power.h). So every
// rank hears of every other, through a few. The merged note keeps one signature; where two differ, or poison comes, the
// merged one is poison, and the data stay behind. As each rank's own is merged with all others', all see it.
//
// All meetings of a process set go on one tag. A message says by its note which meeting it belongs to, and by its sender
// which exchange; one about a thing that this rank has not come to waits here. Each rank knows its few partners, so a
// receive from each is always posted.
//
// A rank that hands its tensor over hears of nothing before the result: when it joins it says so to the one that stands in.
//
// A message may carry the checksum of all of it. One that is damaged cannot be told from one of another meeting, so the rank that
// it came to can agree on nothing any more: poll() throws (ErrorKind::checksum).
//
// Leaving: the first that leaves tells its partners (`news`), each rank that hears it its own, once. And all come to the
// meeting `leaving` as they leave: who has been there knows that all have.
#pragma once

#include <functional>
#include <list>
#include <vector>

#include "agree/meetings.h"
#include "transport/transport.h"

namespace ringdp {

class Doubling final : public Meetings {
 public:
  // Merges a payload into this rank's; both are as long. `mine_is_left`: on which side of the operation mine stands.
  using Merge = std::function<void(const Meeting&, std::byte* mine, const std::byte* theirs, bool mine_is_left)>;
  static constexpr uint32_t kMostPayload = 32 << 10;  // bytes

  Doubling(Transport& transport, int tag, bool checks, Merge merge);
  ~Doubling() override;

  Meeting& come(const Note& note, const void* payload, uint64_t token) override;
  void close(Meeting& meeting) override;
  bool poll() override;
  bool all_left() const override { return all_left_ && news_missing_ == 0 && sending_.empty(); }
  bool relays() const override { return abandoned_ > 0; }
  bool busy() const override { return open_ > 0 || relays() || !sending_.empty() || (has_left() && !all_left()); }
  int drawer() const override;
  void cancel();  // takes the receives back: nothing is heard any more

 private:
  struct Gathering final : Meeting {
    Note heard;                                 // merged so far
    size_t stage = 0;                           // the exchange that it is in
    std::vector<std::deque<Received>> waiting;  // by exchange: messages that came before their turn
    bool abandoned = false;                     // this rank has come, and waits no more
  };
  // One exchange, in order.
  struct Stage {
    int peer;
    bool sends, receives;
    bool mine_is_left;
    bool is_result;  // what comes replaces what this rank has heard
  };
  struct Envelope {
    uint32_t magic = kMagic, version = kVersion;
    Note note;
    uint32_t checksum = 0, unused = 0;  // of the note and the payload, where messages carry one
    static constexpr uint32_t kMagic = 0x72647064, kVersion = 2;
  };
  struct Inbox {
    size_t stage = 0;
    Request request;
    std::vector<std::byte> buffer;
  };
  struct Sending {
    Request request;
    std::vector<std::byte> data;
  };

  Gathering& at(const Subject& subject);
  void begin(Gathering& meeting, const Note& note, const void* payload);
  void take(size_t stage, const Note& note, const std::byte* payload);
  void go_on(Gathering& meeting);
  void merge(Gathering& meeting, const Note& note, const std::byte* payload);
  void come_with_mark(const Subject& subject, Gathering& meeting);
  void enter(Gathering& meeting);
  void send(int peer, const Note& note, const void* payload);
  void look_at(const Inbox& in, const Envelope& envelope, size_t length) const;
  [[noreturn]] void refuse(int peer) const;  // what it has sent makes no sense
  void tell_news();
  void take_news(size_t stage, const Note& note);
  void partner_is_silent();
  void take_result_with_mark(const Subject& subject, Gathering& meeting, const Note& note);
  bool lacks_partner(const Gathering& meeting) const;
  void is_abandoned(Meeting& meeting) override;
  void tell_of_leaving() override;
  void tell_of_joining() override;
  void mark_open() override;

  Transport& transport_;
  const int tag_;
  const bool checks_;
  const Merge merge_;
  std::vector<Stage> stages_;
  std::vector<Inbox> inboxes_;  // of the exchanges that receive
  std::list<Sending> sending_, spare_;
  Table<Gathering> meetings_;
  int open_ = 0;       // meetings that this rank has come to, and that are not complete
  int abandoned_ = 0;  // the same, where it waits no more
  size_t news_missing_ = 0;
  bool armed_ = false, told_ = false, all_left_ = false;
  // For a rank that hands over to this one: it comes to nothing more, or to nothing more before this era.
  bool stands_in_ = false, partner_ended_ = false;
  uint32_t partner_comes_from_ = 0;
};

}  // namespace ringdp

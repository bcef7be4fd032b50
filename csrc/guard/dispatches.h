// Messages between the engines of a job that any rank may send to any other at any time: of roll calls, and of deaths. They go
// by the control communicator of all ranks, beside the meetings.
//
// Nobody waits for one: they are sent and received while the engine takes its turns. What cannot be sent, as who should get it
// is gone, is forgotten.
#pragma once

#include <cstddef>
#include <list>
#include <vector>

#include "transport/transport.h"

namespace ringdp {

class Dispatches {
 public:
  enum Tag : int { question = 1, answer = 2, alarm = 3 };  // beside ProcessSet::kMeetingsTag

  // Of these tags, none longer than `most` bytes. The transport must outlive it.
  Dispatches(Transport& transport, std::vector<Tag> tags, size_t most);

  struct Dispatch {
    int from;
    Tag tag;
    std::vector<std::byte> data;
  };
  void send(int to, Tag tag, std::vector<std::byte> data);
  // What has come since. Throws ErrorKind::transport where one is longer than any can be.
  std::vector<Dispatch> take();
  bool all_sent();

 private:
  struct Sending {
    Request request;
    std::vector<std::byte> data;
  };
  struct Receiving {
    Request request;
    Dispatch dispatch;
  };
  void receive(Tag tag);

  Transport& transport_;
  const std::vector<Tag> tags_;
  const size_t most_;
  std::list<Sending> sending_;
  std::list<Receiving> receiving_;
};

}  // namespace ringdp

#include "nccl_messages.h"

#include <algorithm>
#include <cstring>

namespace standin {

namespace {

struct Envelope {  // goes before the bytes
  uint64_t bytes;
  DataType type;
};

const char* name_of(const Message& m) { return m.is_send ? "ncclSend" : "ncclRecv"; }

std::byte* reach(const Comm& c, const Message& m) {
  return m.bytes == 0 ? nullptr : of_cuda().reach(m.data, m.bytes, name_of(m), c.ordinal);
}

// --- a channel: what was written and not yet read ------------------------------------------------------------------------------

uint64_t filled(const Channel& channel) { return channel.written.load() - channel.read.load(); }

template <class Copy>  // copy(bytes of the channel, offset, how many)
void around(uint64_t at, uint64_t bytes, const Copy& copy) {
  const uint64_t start = at % kChannel, first = std::min(bytes, kChannel - start);
  copy(start, 0, first);
  copy(0, first, bytes - first);
}

void write(Channel& channel, const void* data, uint64_t bytes) {
  around(channel.written, bytes, [&](uint64_t place, uint64_t offset, uint64_t n) {
    if (n > 0) std::memcpy(channel.bytes + place, static_cast<const std::byte*>(data) + offset, n);
  });
  channel.written.fetch_add(bytes);
}

void read(Channel& channel, void* data, uint64_t bytes) {
  around(channel.read, bytes, [&](uint64_t place, uint64_t offset, uint64_t n) {
    if (n > 0) std::memcpy(static_cast<std::byte*>(data) + offset, channel.bytes + place, n);
  });
  channel.read.fetch_add(bytes);
}

// --- a message on its way ------------------------------------------------------------------------------------------------------

class Transfer {
 public:
  Transfer(Comm& c, const Message& m)
      : c_(c),
        message_(m),
        channel_(m.is_send ? c.file->channels[c.rank][m.peer] : c.file->channels[m.peer][c.rank]),
        data_(reach(c, m)),
        left_(m.bytes) {}

  bool done() const { return begun_ && left_ == 0 && (!message_.is_send || channel_.read.load() >= end_); }
  bool follows(const Transfer& other) const {
    return message_.is_send == other.message_.is_send && message_.peer == other.message_.peer;
  }
  bool advance() { return begun_ ? move() : begin(); }  // false: it has to wait

 private:
  bool begin() {
    Envelope envelope{message_.bytes, message_.type};
    if (message_.is_send) {
      if (kChannel - filled(channel_) < sizeof envelope) return false;
      write(channel_, &envelope, sizeof envelope);
      end_ = channel_.written.load() + message_.bytes;
    } else {
      if (filled(channel_) < sizeof envelope) return false;
      read(channel_, &envelope, sizeof envelope);
      compare(envelope);
    }
    return begun_ = true;
  }

  void compare(const Envelope& sent) const {
    if (sent.bytes == message_.bytes && sent.type == message_.type) return;
    const auto text = [](uint64_t bytes, DataType type) {
      return std::to_string(bytes) + " bytes of type " + std::to_string(type);
    };
    misuse("rank " + std::to_string(message_.peer) + " sends " + text(sent.bytes, sent.type) + ", and rank " +
           std::to_string(c_.rank) + " receives " + text(message_.bytes, message_.type));
  }

  bool move() {
    const uint64_t n = std::min(left_, message_.is_send ? kChannel - filled(channel_) : filled(channel_));
    if (n == 0) return false;
    message_.is_send ? write(channel_, data_, n) : read(channel_, data_, n);
    data_ += n, left_ -= n;
    return true;
  }

  Comm& c_;
  const Message& message_;
  Channel& channel_;
  std::byte* data_;
  uint64_t left_, end_ = 0;
  bool begun_ = false;
};

// The first that is not done, of each peer and direction.
bool may_go(const std::vector<Transfer>& all, size_t index) {
  for (size_t i = 0; i < index; ++i)
    if (!all[i].done() && all[index].follows(all[i])) return false;
  return !all[index].done();
}

}  // namespace

void check(const Comm& c, const std::vector<Message>& messages) {
  for (const Message& m : messages) reach(c, m);
  for (const Message& received : messages)
    for (const Message& other : messages) {
      if (received.is_send || &received == &other) continue;
      if (received.data < other.data + other.bytes && other.data < received.data + received.bytes)
        misuse(std::string("ncclRecv into memory of another ") + name_of(other) + " of the group");
    }
}

void carry_out(Comm& c, const std::vector<Message>& messages) {
  std::vector<Transfer> transfers;
  transfers.reserve(messages.size());
  for (const Message& m : messages) transfers.emplace_back(c, m);
  wait_for(c, [&] {
    bool all_done = true;
    for (size_t i = 0; i < transfers.size(); ++i) {
      while (may_go(transfers, i) && transfers[i].advance()) {
      }
      all_done &= transfers[i].done();
    }
    return all_done;
  });
}

}  // namespace standin
